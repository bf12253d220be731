"""Sentences of the model card and the datasheet that depend on the config, and the Markdown that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Sized

import pandas as pd

from medlt import config as configs

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
PARENTS = {
    "tail_parent": "the image that the synthetic image is made from",
    "head_parent": "the image that is mixed into it",
    "parents": "a list of these",
    "label_source": "the image whose label vector the synthetic image has",
}


def header(config: configs.RunConfig) -> str:
    """Return the header that Hugging Face reads. The holder of the data chooses the licence."""
    tags = ["medical", "radiograph", "synthetic", "diffusion", "medlt"]
    tags += ["differential-privacy"] if is_private(config) else []
    stable = isinstance(config.denoiser, configs.StableConfig)
    lines = [f"library_name: {'diffusers' if stable else 'medlt'}", "license: other", "license_name: not-yet-chosen"]
    lines += ["pipeline_tag: text-to-image"] if stable else []
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---", "", ""])


def bullets(*lines: str) -> str:
    """Return a Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def markdown_table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table."""
    head = list(columns)
    lines = [head, ["---"] * len(head), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def is_private(config: configs.RunConfig) -> bool:
    """Return whether the run has a section privacy."""
    return config.privacy is not None


def is_drawn(config: configs.RunConfig) -> bool:
    """Return whether the data is the phantom, which a program draws: it shows no patients."""
    return isinstance(config.data, configs.PhantomData)


def run_name(config: configs.RunConfig) -> str:
    """Return the name of the run folder, without its place."""
    return config.output_dir.name or "run"


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
    """Return the condition of the denoiser."""
    if isinstance(config.denoiser, configs.StableConfig):
        return "a prompt"
    known = config.denoiser.attributes
    return "a label vector of findings" + (f", with {', '.join(known)} as far as known" if known else "")


def training(config: configs.RunConfig) -> list[str]:
    """Return how the denoiser is trained."""
    chosen = config.denoiser
    if chosen.train == "none":
        return ["None on these images.", *_votes(config)]
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
    method, checked = config.method, "A verifier checks the label of each image."
    if config.data_independent:
        return "An image has its target finding and no other one. No verifier checks the labels."
    if isinstance(method, configs.Fusion):
        return f"{FUSED_LABELS[method.labels]} {checked}"
    if isinstance(method, configs.Edit):
        mixed = "Labels are soft where a second image is mixed in: the weighted mean of both label vectors."
        return f"{mixed if method.mixed else 'An image has the label vector of its tail parent.'} {checked}"
    if isinstance(method, configs.Recompose):
        return (
            "An image has the finding of its tail parent and the labels of its head parent; a label is unknown where "
            f"the evidence may not have been carried or may have been covered. {checked}"
        )
    if config.method.kind in ("noise", "minority", "longtail", "diffult"):
        return f"An image has the label vector of a train image. {checked}"
    return f"The plug-in {config.method.kind} sets the labels. {checked}"


def identification(config: configs.RunConfig) -> list[str]:
    """Return how a file states what it is."""
    lines = [
        "The text chunks of every PNG file state: the version of medlt (Software), that the image is synthetic "
        "(Synthetic: true), the id of the run (Run) and the uid of the image (UID).",
    ]
    dicom = ["Every DICOM file has YES in Synthetic Data (0008,001C)."] if config.format == "dicom" else []
    return [
        *lines,
        *dicom,
        "images/metadata.csv lists for each image: labels, run, method, target finding, seed, weight.",
    ]


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


def distribution(config: configs.RunConfig) -> str:
    """Return the files that are handed out, and who chooses their licence."""
    form = "PNG" if config.format == "png" else "PNG, and DICOM Secondary Capture marked as synthetic"
    return f"images/ as {form}, with metadata.csv. The holder of the data chooses the licence."
