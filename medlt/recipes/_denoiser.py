"""The denoiser of a run, of the family that the config names, as a backbone for sampling.

A small network is trained from scratch. A Stable Diffusion model is loaded or created, fine-tuned, and read back from
the written files. Sampling always uses the weights of the artifact. RUN/denoiser is a copy for the user: the small
network, a LoRA file for the base model, or a whole diffusers folder.
"""

from __future__ import annotations

import filecmp
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medlt import config as configs
from medlt.data.manifest import Manifest
from medlt.diffusion.adapt import FULL, Finetuning, FullFinetuning, LoraFinetuning
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.cache import Latents
from medlt.diffusion.codec import AutoencoderCodec
from medlt.diffusion.decode import Decoder
from medlt.diffusion.families import FAMILIES, init_from, load_label_network
from medlt.diffusion.finetune import LabelledLatents, SampleGrid, backbone_key, train_backbone
from medlt.diffusion.labels import LabelNetwork, NullCondition
from medlt.diffusion.losses import ExtraLoss
from medlt.diffusion.placement import place
from medlt.diffusion.stable.load import StableDiffusion, fits, load_stable_diffusion
from medlt.diffusion.stable.save import save_lora, save_stable_diffusion
from medlt.diffusion.stable.untrained import untrained
from medlt.diffusion.train import new_network
from medlt.files import atomic, digest_tensors, write_table
from medlt.recipes._checks import check_prompts, objective, prompts, training
from medlt.recipes._codec import placement
from medlt.recipes._cohort import Cohort, about, patients
from medlt.recipes._setup import RunFolder
from medlt.store import Artifact
from medlt.training.protocols import PrivateFit
from medlt.types import InputError

log = logging.getLogger(__name__)
SHOWN = 8
KIND = "denoiser"
LABEL_FILES = ("model.json", "model.safetensors")
INDEX = {"full": "model_index.json", "lora": "pytorch_lora_weights.safetensors"}
OWN = {"kind", "init_from", "train", "attribute_dropout", *configs.DenoiserTraining.model_fields}
"""Fields of a denoiser's config that do not describe its network."""

Losses = Callable[[Backbone], Sequence[ExtraLoss]]
"""Function of the backbone that is trained; it returns losses to add to the usual one."""


def no_losses(backbone: Backbone) -> Sequence[ExtraLoss]:
    """Return no extra loss."""
    return ()


def labelled_latents(cohort: Cohort, latents: Latents, part: Manifest, space: str = "standardised") -> LabelledLatents:
    """Return latents in this space, labels, patients, and view, sex and age of these rows."""
    accessor: Callable[..., Tensor] = latents
    if space != "standardised":
        accessor = lambda uids: latents.codec.latents(latents.cache[uids])  # noqa: E731
    named = f"{latents.contents} {space}"
    return LabelledLatents(accessor, list(part.rows.index), part.labels(), named, about(part), patients(part))


def taken(data: LabelledLatents, rows: np.ndarray) -> LabelledLatents:
    """Return the data of these row numbers."""
    described, owners = ([part[i] for i in rows] if part else () for part in (data.about, data.patients))
    uids = [data.uids[i] for i in rows]
    return LabelledLatents(data.latents, uids, data.labels[rows], data.contents, described, owners)


def joined(parts: Sequence[LabelledLatents]) -> LabelledLatents:
    """Return the rows of several data sets, one after the other."""
    home = {uid: part for part in parts for uid in part.uids}

    def latents(uids: Sequence[str]) -> Tensor:
        return torch.cat([home[uid].latents([uid]) for uid in uids])

    described, owners = ([one for part in parts for one in getattr(part, name)] for name in ("about", "patients"))
    labels = np.concatenate([part.labels for part in parts])
    contents = " + ".join(dict.fromkeys(part.contents for part in parts))
    return LabelledLatents(latents, list(home), labels, contents, described, owners)


def train_denoiser(
    run: RunFolder[configs.RunConfig], cohort: Cohort, latents: Latents, private: PrivateFit | None,
    losses: Losses = no_losses,
) -> Backbone:  # fmt: skip
    """Train the config's denoiser on the train split, with extra `losses`, or load it, and return it for sampling.

    The losses of its training are written to training.parquet.
    """
    config = run.config
    make = _stable_diffusion if isinstance(config.denoiser, configs.StableConfig) else _label_network
    if is_given(config):
        make = _given_network
    with run.stage("denoiser"):
        backbone, artifact = make(run, cohort, latents, private, losses)
        if artifact is not None and artifact.path("history.parquet").is_file():
            write_table(run.path("training.parquet"), pd.read_parquet(artifact.path("history.parquet")))
        ready = place(backbone, **placement(run.runtime), compile=config.compile, cuda_graphs=config.cuda_graphs)
    run.record(digests={"denoiser": ready.digest})
    if artifact is not None:
        run.record(denoiser={"artifact": artifact.digest})
    return ready


def fresh_network(config: configs.RunConfig, data: LabelledLatents, seed: int) -> LabelNetwork:
    """Return the config's small network before its training, with the weights of `init_from` if that is set."""
    chosen = config.denoiser
    assert isinstance(chosen, configs.SmallDenoiser)
    net = new_network(FAMILIES[chosen.kind], data, seed, chosen.model_dump(exclude=OWN))
    if chosen.init_from is not None:
        init_from(net, chosen.init_from)
    return net


def _label_network(
    run: RunFolder[configs.RunConfig], cohort: Cohort, latents: Latents, private: PrivateFit | None, losses: Losses
) -> tuple[Backbone, Artifact]:
    """Train or load a small network that is conditioned on label vectors, on standardised latents."""
    net = fresh_network(run.config, labelled_latents(cohort, latents, cohort.train), run.config.seed)

    def save(folder: Path) -> None:
        net.save(folder)
        if private is not None and not _equal(net, load_label_network(folder)):
            raise InputError(f"{folder}: the saved denoiser is not the trained one; check the disk and run again")

    artifact = _trained(run, cohort, latents, net.backbone(), FULL, private, losses, save)
    _hand_over({artifact.path(name): run.path("denoiser", name) for name in LABEL_FILES})
    saved = load_label_network(artifact.folder)
    if private is not None:  # the ledger must name the weights that are handed on
        weights = digest_tensors({str(i): weight for i, weight in enumerate(saved.parameters())})
        run.record(weights={"denoiser": weights})
    return saved.backbone(), artifact


def is_given(config: configs.RunConfig) -> bool:
    """Return whether the denoiser is a small network that is used as it is."""
    return isinstance(config.denoiser, configs.SmallDenoiser) and config.denoiser.train == "none"


def _given_network(
    run: RunFolder[configs.RunConfig], cohort: Cohort, latents: Latents, private: PrivateFit | None, losses: Losses
) -> tuple[Backbone, None]:
    """Load the small network of init_from as it is.

    If it was trained for another number of findings, it is used without its condition, with a warning. Raises
    InputError if it was trained on other latents.
    """
    chosen = run.config.denoiser
    assert isinstance(chosen, configs.SmallDenoiser)
    assert chosen.init_from is not None
    net = load_label_network(chosen.init_from)
    if (channels := net.settings["channels"]) != latents.codec.channels:
        raise InputError(
            f"denoiser.init_from: {chosen.init_from} makes latents of {channels} channels, the codec has "
            f"{latents.codec.channels}; give the codec that it was trained with"
        )
    backbone, known = net.backbone(), net.settings["findings"]
    if known != len(cohort.findings):
        log.warning(
            "the given denoiser knows %d findings, not these %d: it is used without a condition, so nothing but a "
            "choice between its images gives them a finding", known, len(cohort.findings)
        )  # fmt: skip
        backbone = replace(backbone, condition=NullCondition(backbone.condition))
    return backbone, None


def _equal(net: LabelNetwork, other: LabelNetwork) -> bool:
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def _trained(
    run: RunFolder[configs.RunConfig], cohort: Cohort, latents: Latents, backbone: Backbone, finetuning: Finetuning,
    private: PrivateFit | None, losses: Losses, save: Callable[[Path], None], **key: Any,
) -> Artifact:  # fmt: skip
    """Train a backbone with the config's settings and `save` it, unless the artifact exists."""
    chosen = run.config.denoiser
    runtime, space = run.runtime.at(chosen.precision), backbone.space
    data = labelled_latents(cohort, latents, cohort.train, space)
    settings: dict[str, Any] = {
        "training": training(chosen), "finetuning": finetuning, "objective": objective(chosen),
        "extra_losses": losses(backbone),
        "validation": labelled_latents(cohort, latents, cohort.val, space) if len(cohort.val.rows) else None,
        "runtime": runtime, "name": "denoiser", "private": private,
    }  # fmt: skip

    def build(folder: Path) -> None:
        train_backbone(
            backbone,
            data,
            folder=folder,
            **settings,
            samples=_samples(run, cohort, latents, data, space),
            tracker=chosen.tracker,
        )
        save(folder)

    whole, shared = ({**backbone_key(backbone, data, **settings, steps=steps), **key} for steps in (True, False))
    artifact = run.store.make(KIND, whole, build, work=shared, joint=True)
    if private is not None:
        private.account(artifact.path("mechanism.json"))
    return artifact


def _samples(
    run: RunFolder[configs.RunConfig], cohort: Cohort, latents: Latents, data: LabelledLatents, space: str
) -> SampleGrid:
    """Return the sample grid of checkpoints: for each of the first tail findings, the label vector of one real row."""
    height, width = latents.cache.shape[-2:]
    decode = Decoder(latents.codec)
    first = [int((cohort.train.rows[name] == 1).to_numpy().argmax()) for name in cohort.tail[:SHOWN]]
    back = (lambda z: z) if space == "codec" else latents.standardiser.back
    return SampleGrid(
        labels=torch.from_numpy(data.labels[first].astype("float32")),
        shape=(height, width),
        decode=lambda z: decode(back(z)),
        about=[data.about[i] for i in first] if data.about else (),
        seed=run.config.seed,
    )


def base_model(
    run: RunFolder[configs.RunConfig], chosen: configs.StableConfig, channels: int, *more: Path
) -> StableDiffusion:
    """Return the model of the config. An untrained one, with `channels` latent channels, is created once."""
    model = chosen.model
    if isinstance(model, configs.StableFolder):
        loras = (*model.loras, *more)
        return load_stable_diffusion(model.path, loras=loras, prediction=model.prediction, config=model.config)
    settings: dict[str, Any] = model.model_dump(exclude={"kind"}) | {"channels": channels, "seed": run.config.seed}
    key = {"format": 1, **{name: str(value) for name, value in settings.items()}}

    def build(folder: Path) -> None:
        shutil.rmtree(folder / "model", ignore_errors=True)  # what a killed process left
        untrained(folder / "model", **settings)

    artifact = run.store.make("untrained", key, build)
    return load_stable_diffusion(artifact.path("model"), loras=more)


def _stable_diffusion(
    run: RunFolder[configs.RunConfig], cohort: Cohort, latents: Latents, private: PrivateFit | None, losses: Losses
) -> tuple[Backbone, Artifact | None]:
    """Load, create or fine-tune the config's Stable Diffusion.

    Raises InputError if model, codec and prompts do not fit.
    """
    chosen = run.config.denoiser
    assert isinstance(chosen, configs.StableConfig)
    base = partial(base_model, run, chosen, latents.codec.channels)
    words, model = prompts(chosen, cohort.findings), base()
    fits(model, latents.codec)
    check_prompts(model.tokenizer, words, None if run.config.privacy is not None else cohort.train)
    if chosen.train == "none":
        return model.backbone(words), None
    _require_free(run.path("denoiser"), chosen.train)
    backbone = model.backbone(words, "trained" if chosen.train_text else "frozen")

    def save(folder: Path) -> None:
        shutil.rmtree(folder / "model", ignore_errors=True)  # what a killed process left
        if chosen.train == "lora":
            save_lora(model.unet, folder / "model", model.text_encoder if chosen.train_text else None)
        else:
            _save_whole(model, latents.codec, folder)

    artifact = _trained(
        run, cohort, latents, backbone, _finetuning(chosen), private, losses, save,
        codec=latents.codec.digest, prompts=words.digest, train=chosen.train,
    )  # fmt: skip
    trained, home = artifact.path("model"), run.path("denoiser")
    _hand_over({file: home / file.relative_to(trained) for file in trained.rglob("*") if file.is_file()})
    saved = load_stable_diffusion(trained) if chosen.train == "full" else base(trained)
    return saved.backbone(words), artifact


def _save_whole(model: StableDiffusion, codec: Any, folder: Path) -> None:
    """Write a whole diffusers folder, with the codec as its VAE."""
    assert isinstance(codec, AutoencoderCodec)
    vae = folder / "checkpoint" / "vae"
    shutil.rmtree(vae, ignore_errors=True)
    codec.network.save_pretrained(vae, safe_serialization=True)  # type: ignore[operator]
    save_stable_diffusion(model, folder / "model", vae=vae)


def _finetuning(chosen: configs.StableConfig) -> Finetuning:
    if chosen.train == "full":
        return FullFinetuning(chosen.train_text)
    return LoraFinetuning(chosen.rank, conv=chosen.lora_conv, text_encoder=chosen.train_text)


def _require_free(home: Path, train: str) -> None:
    """Raise InputError, before the training, if other files are where its result will be written."""
    others = home.is_dir() and any(home.iterdir()) and not (home / INDEX[train]).is_file()
    if home.is_file() or (train == "full" and others):
        raise InputError(f"{home}: holds files that this run did not write; move it away and run again")


def _hand_over(files: Mapping[Path, Path]) -> None:
    """Copy files of a model into the run folder. Other files may lie beside an adapter.

    Raises InputError for a file of another model there.
    """
    for file, target in sorted(files.items()):
        if not target.exists():
            with atomic(target) as temporary:
                shutil.copyfile(file, temporary)
        elif not filecmp.cmp(file, target, shallow=False):
            raise InputError(f"{target}: is not the model that this run trained; move it away and run again")


def saved_denoiser(run: RunFolder[configs.RunConfig], cohort: Cohort, latents: Latents) -> Backbone:
    """Return the saved denoiser that made a finished run's images. Raises InputError if it is missing."""
    chosen = run.config.denoiser
    if isinstance(chosen, configs.StableConfig) and chosen.train == "none":
        return _stable_diffusion(run, cohort, latents, None, no_losses)[0]
    if is_given(run.config):
        return _given_network(run, cohort, latents, None, no_losses)[0]
    name = run.summary().get("denoiser", {}).get("artifact", "")
    artifact = run.store.open(KIND, run.store.root / KIND / name) if name else None
    if artifact is None:
        raise InputError(f"{run.folder}: its denoiser is missing; restore it, or run `medlt augment` again")
    if not isinstance(chosen, configs.StableConfig):
        return load_label_network(artifact.folder).backbone()
    trained, words = artifact.path("model"), prompts(chosen, cohort.findings)
    channels = latents.codec.channels
    model = load_stable_diffusion(trained) if chosen.train == "full" else base_model(run, chosen, channels, trained)
    return model.backbone(words)
