"""Sentences of the model card and the datasheet that depend on the config, and the Markdown that holds them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sized
from pathlib import Path

import pandas as pd
import yaml
from PIL import Image

from medlt import config as configs
from medlt.files import read_columns
from medlt.markdown_text import cell, inline

FUSED_LABELS = {
    "tail": "A finding is present if the tail parent has it, absent if both parents are known not to have it, and "
    "unknown otherwise.",
    "union": "A finding is present if either parent has it.",
    "cam_mass": "Labels are soft: the label of a finding is the share of it that the image is expected to take from "
    "the parent with the finding, by a map of known accuracy. A share between 0.2 and 0.8, and a map that "
    "is no better than chance or was never measured, give an unknown label.",
    "lesion_carried": "Labels are soft: the label of a finding is the share of its mask or box that the image takes "
    "from the parent with the finding. A share between 0.2 and 0.8, and a finding without a mask or box, give "
    "an unknown label.",
    "measured": "Labels are soft: the label of a finding is the share of it that the image is expected to take from "
    "the parent with the finding, by its mask or box, or by a map of known accuracy. A share between 0.2 "
    "and 0.8, and a map that is no better than chance, give an unknown label. Where a map was never "
    "measured, the finding has the label of the tail parent.",
}
LICENCE = {"license": "other", "license_name": "not-yet-chosen"}
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
"""Categories of size of Hugging Face, with the number of images below which they hold."""
CHUNKS = {
    "Software": "the version of medlt (Software)",
    "Synthetic": "that the image is synthetic (Synthetic: true)",
    "Run": "the id of the run (Run)",
    "UID": "the uid of the image (UID)",
}
"""Text chunk of a PNG file -> what it states."""
LABEL_CHECK = "label_consistency"
PARENTS = {
    "tail_parent": "the image that the synthetic image is made from",
    "head_parent": "the image that is mixed into it",
    "parents": "a list of these",
    "label_source": "the image whose label vector the synthetic image has",
}


def header(config: configs.RunConfig) -> str:
    """Return the header of the model card that Hugging Face reads. The holder of the data chooses the licence."""
    stable = isinstance(config.denoiser, configs.StableConfig) and uses_denoiser(config)
    fields: dict[str, object] = {"library_name": "diffusers" if stable else "medlt", **LICENCE}
    fields |= {"pipeline_tag": "text-to-image"} if stable else {}
    return _front_matter(fields | {"tags": _tags(config)})


def dataset_header(config: configs.RunConfig, images: int) -> str:
    """Return the header of the datasheet that Hugging Face reads, with the size of the published part."""
    fields: dict[str, object] = {
        "pretty_name": run_name(config),
        **LICENCE,
        "task_categories": ["image-classification"],
        "task_ids": ["multi-label-image-classification"],
        "annotations_creators": ["machine-generated"],
    }
    sizes = [name for most, name in SIZES if images < most]
    fields |= {"size_categories": sizes[:1]} if images and sizes else {}
    return _front_matter(fields | {"tags": _tags(config)})


def _tags(config: configs.RunConfig) -> list[str]:
    phantom, private = ["phantom"] * is_drawn(config), ["differential-privacy"] * is_private(config)
    return ["medical", "radiograph", "synthetic", *["diffusion"] * uses_denoiser(config), "medlt", *phantom, *private]


def _front_matter(fields: dict[str, object]) -> str:
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n\n"


def bullets(*lines: str) -> str:
    """Return a Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def markdown_table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table."""
    head = list(columns)
    lines = [head, ["---"] * len(head), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return cell(f"{value:.5g}" if isinstance(value, float) else value)


def is_private(config: configs.RunConfig) -> bool:
    """Return whether the run has a section privacy."""
    return config.privacy is not None


def is_drawn(config: configs.RunConfig) -> bool:
    """Return whether the data is the phantom, which a program draws: it shows no patients."""
    return isinstance(config.data, configs.PhantomData)


def uses_denoiser(config: configs.RunConfig) -> bool:
    """Return whether the method uses a denoiser: a recomposition without refinement uses none."""
    return not isinstance(config.method, configs.Recompose) or bool(config.method.strength)


def run_name(config: configs.RunConfig) -> str:
    """Return the name of the run folder, without its place."""
    return config.output_dir.name or "run"


def model(config: configs.RunConfig, recorded: Collection[str]) -> str:
    """Return what the model is; recorded: the parts of which run.json holds a digest."""
    radiographs = "phantom radiographs" if is_drawn(config) else "radiographs"
    if not uses_denoiser(config):
        return f"No generative model: the method puts parts of {radiographs} together, and uses no denoiser."
    kind = "diffusion model of pixels" if isinstance(config.codec, configs.PixelsConfig) else "latent diffusion model"
    lacking = [name for name in ("denoiser", "codec") if name not in recorded]
    unknown = f" run.json records no {' and no '.join(lacking)}: not trained, or not finished." if lacking else ""
    return f"A {kind} of {radiographs} ({denoiser(config)}), with {codec(config)}.{unknown}"


def denoiser(config: configs.RunConfig) -> str:
    """Return the kind of the denoiser and the origin of its weights."""
    chosen = config.denoiser
    if isinstance(chosen, configs.StableConfig):
        trained = {
            "none": "with the given weights",
            "lora": f"LoRA of rank {chosen.rank}",
            "full": "all weights trained",
        }
        return f"Stable Diffusion, {trained[chosen.train]}"
    if chosen.train == "none":
        return f"a given {chosen.kind}, conditioned on label vectors that it knows"
    origin = "from scratch" if chosen.init_from is None else "from given weights"
    return f"{chosen.kind}, width {chosen.width}, conditioned on label vectors, trained {origin}"


def codec(config: configs.RunConfig) -> str:
    """Return the origin of the codec."""
    if isinstance(config.codec, configs.TrainedCodec):
        return "a codec trained on the same images"
    if isinstance(config.codec, configs.PixelsConfig):
        return "the identity as its codec: it makes pixels"
    if not isinstance(config.codec, configs.FolderCodec):
        return f"codec {config.codec.kind} of a plug-in"
    return "a given codec" if config.codec.tune is None else "a given codec tuned on the same images"


def condition(config: configs.RunConfig) -> str:
    """Return what an image is sampled for."""
    if not uses_denoiser(config):
        return "Each image is put together from parts of a tail parent and a head parent; no network samples it."
    if isinstance(config.denoiser, configs.StableConfig):
        return "Each image is sampled for a prompt."
    known = config.denoiser.attributes
    attributes = f", with {', '.join(known)} as far as known" if known else ""
    return f"Each image is sampled for a label vector of findings{attributes}."


def training(config: configs.RunConfig, recorded: Collection[str]) -> list[str]:
    """Return how the denoiser is trained; recorded: the parts of which run.json holds a digest."""
    chosen = config.denoiser
    if not uses_denoiser(config):
        return ["None: the method uses no denoiser."]
    if chosen.train == "none":
        return ["None on these images.", *_votes(config)]
    if "denoiser" not in recorded:
        return ["Not recorded: run.json holds no digest of a denoiser."]
    batch = f"{chosen.batch_size} {'images' if config.privacy is None else 'privacy units on average'}"
    return [
        f"{chosen.steps} steps of {batch}, learning rate {chosen.learning_rate:g}, {chosen.lr_scheduler} after "
        f"{chosen.warmup_steps} steps, {chosen.precision}, weights averaged with ema_decay {chosen.ema_decay}.",
    ]


def _votes(config: configs.RunConfig) -> list[str]:
    """Return how patients voted for the images, if they did."""
    if not isinstance(method := config.method, configs.Evolution):
        return []
    return [
        f"Private Evolution: {len(method.strength)} noisy votes on {method.population} images per finding. Each "
        "patient votes for the images nearest to their own, with a vector of norm 1 over all images and findings. "
        "Images are drawn in proportion to the noisy votes and varied by the given denoiser."
    ]


def not_shown(config: configs.RunConfig) -> list[str]:
    """Return what neither document shows; a private run shows less."""
    common = ["How the images help with radiographs of another hospital."]
    if not is_private(config):
        return common
    return [
        "Losses of training and validation: they are measured on training and validation images without noise.",
        "The number of train images with each finding.",
        "The budget that other runs on the same data have spent; it adds up.",
        *common,
    ]


def labelling(config: configs.RunConfig) -> str:
    """Return how the labels come about: a function of the method and its settings."""
    method = config.method
    if config.data_independent:
        return "An image has its target finding and no other one."
    if isinstance(method, configs.Fusion):
        return FUSED_LABELS[method.labels]
    if isinstance(method, configs.Edit):
        mixed = "Labels are soft where a second image is mixed in: the weighted mean of both label vectors."
        return mixed if method.mixed else "An image has the label vector of its tail parent."
    if isinstance(method, configs.Recompose):
        return (
            "An image has the finding of its tail parent and the labels of its head parent; a label is unknown where "
            "the evidence may not have been carried or may have been covered."
        )
    if config.method.kind in ("noise", "minority", "longtail", "diffult"):
        return "An image has the label vector of a train image."
    return f"The plug-in {config.method.kind} sets the labels."


def verified(config: configs.RunConfig, folder: Path, made: pd.DataFrame) -> str:
    """Return whether verifiers checked the labels of the published images, by checks.parquet.

    A private run gives no number: which images pass depends on its patients.
    """
    if config.data_independent:
        return "No verifier checks the labels."
    if made.empty or not (folder / "checks.parquet").is_file():
        return "Not recorded: whether a verifier checked the labels."
    table = read_columns(folder / "checks.parquet", columns=["check", "uid", "passed"])
    passed = set(table.loc[(table["check"] == LABEL_CHECK) & table["passed"].astype(bool), "uid"].astype(str))
    count = sum(str(uid) in passed for uid in made.index)
    if count == len(made):
        return "A verifier checked the label of each image."
    if not count:
        return "No verifier checked the labels."
    some = "some images" if is_private(config) else f"{count} of {len(made)} images"
    return f"A verifier checked the labels of {some}."


def identification(config: configs.RunConfig, folder: Path, made: pd.DataFrame) -> list[str]:
    """Return how a file states what it is, by the first published image and the columns of images/metadata.csv."""
    first = next((folder / str(path) for path in made.get("path", ()) if (folder / str(path)).is_file()), None)
    lines = ["Not recorded: what an image file states, as no image is published."]
    if first is not None:
        with Image.open(first) as picture:
            stated = [text for name, text in CHUNKS.items() if name in picture.info]
        lines = [f"The text chunks of a PNG file state: {', '.join(stated) or 'nothing'}."]
    dicom = ["Every DICOM file has YES in Synthetic Data (0008,001C)."] if config.format == "dicom" else []
    table = folder / "images" / "metadata.csv"
    columns = list(pd.read_csv(table, nrows=0)) if table.is_file() else []
    listed = [str(name) for name in columns if name not in PARENTS]
    named = f"images/metadata.csv lists for each image: {inline(', '.join(listed))}."
    return [*lines, *dicom, named if listed else "images/metadata.csv is not written."]


def parent_columns(config: configs.RunConfig, made: pd.DataFrame) -> list[str]:
    """Return which columns of metadata.csv hold uids of train images: those of PARENTS that are not empty."""
    if is_private(config):
        return ["images/metadata.csv holds no uid of a train image."]
    given = [f"{name} ({what})" for name, what in PARENTS.items() if name in made and made[name].map(_is_given).any()]
    if not given:
        return []
    own = "phantom images" if is_drawn(config) else "real images of the collection"
    return [
        f"images/metadata.csv also holds uids of {own}: {', '.join(given)}. Remove these columns if no uid may leave."
    ]


def _is_given(value: object) -> bool:
    return len(value) > 0 if isinstance(value, Sized) else bool(pd.notna(value))


def distribution(config: configs.RunConfig, images: int) -> str:
    """Return the files that are handed out, and who chooses their licence."""
    if not images:
        return "No image is published. The holder of the data chooses the licence."
    form = "PNG" if config.format == "png" else "PNG, and DICOM Secondary Capture marked as synthetic"
    return f"images/ as {form}, with metadata.csv. The holder of the data chooses the licence."
