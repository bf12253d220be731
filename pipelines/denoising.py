"""The denoiser of a run, of whatever family its config names, as a backbone ready to sample."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medlt import config as configs
from medlt.diffusion.adapt import FULL
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.cache import Latents
from medlt.diffusion.families import FAMILIES, begin, load_label_network
from medlt.diffusion.placement import place
from medlt.diffusion.train import new_network
from medlt.files import digest_tensors, write_table
from medlt.privacy.preflight import assert_reads_back
from medlt.runs import Run
from medlt.types import InputError
from pipelines import stable, tuning
from pipelines.belonging import FILES, INDEX
from pipelines.encoding import way
from pipelines.stages import Collection, Progress, quiet


def denoiser(
    run: Run, real: Collection, latents: Latents, progress: Progress, further: tuning.Further = tuning.nothing
) -> Backbone:
    """Trained, or loaded, on the train split only, with `further` losses; its history goes to training.parquet."""
    make = stable.backbone if isinstance(run.config.denoiser, configs.StableConfig) else _label_network
    with run.stage("denoiser" if further is tuning.nothing else "diffult") as folder:
        _require_equal_steps(run, folder)
        made = make(run, real, latents, folder, progress, further)
        if (folder / "history.parquet").is_file():
            write_table(run.path("training.parquet"), pd.read_parquet(folder / "history.parquet"))
    ready = place(made, **way(run.config), compile=run.config.compile, cuda_graphs=run.config.cuda_graphs)
    run.record(digests={"denoiser": ready.digest})
    return ready


def _label_network(
    run: Run, real: Collection, latents: Latents, folder: Path, progress: Progress, further: tuning.Further
) -> Backbone:
    """A small network told label vectors, trained from nothing on standardised latents."""
    chosen = run.config.denoiser
    own = set(type(chosen).model_fields) - set(configs.Training.model_fields) - {"kind", "start"}
    assert isinstance(chosen, configs.UNetConfig | configs.TransformerConfig)
    net = new_network(
        FAMILIES[chosen.kind], tuning.data(real, latents, "train"), run.config.seed, chosen.model_dump(include=own)
    )
    if chosen.start is not None:
        begin(net, chosen.start)
    tuning.train(net.backbone(), run, real, latents, folder, FULL, progress, further)
    net.save(folder)
    if run.config.privacy is not None:  # as it can be read back, which is what is handed on
        assert_reads_back(net, folder / "model.safetensors")
        saved = list(load_label_network(folder).parameters())
        run.record(weights={"denoiser": digest_tensors({str(i): weight for i, weight in enumerate(saved)})})
    return net.backbone()


def found(run: Run, real: Collection, latents: Latents) -> Backbone:
    """The denoiser that made a finished run's images, as it was saved. Raises InputError where it is gone."""
    folder = run.home("diffult" if run.config.method.kind == "diffult" else "denoiser")
    chosen = run.config.denoiser
    if isinstance(chosen, configs.StableConfig):
        if chosen.train != "none" and not (run.path("denoiser") / INDEX[chosen.train]).is_file():
            raise InputError(f"{run.path('denoiser')}: the run's denoiser is not there; put it back")
        return stable.backbone(run, real, latents, folder, quiet)
    if not (folder / "model.json").is_file():
        raise InputError(f"{folder}: the run's denoiser is not there; put it back, or finish the run again")
    return load_label_network(folder).backbone()


def _require_equal_steps(run: Run, folder: Path) -> None:
    """Raises InputError for a finished training in a shared folder with another number of steps.

    By itself a run would train it on; but others stand on it as it is.
    """
    history = folder / "history.parquet"
    finished = any((folder / name).is_file() for name in ("model.json", FILES))
    if run.config.learnt is None or not finished or not history.is_file():
        return
    if (done := int(pd.read_parquet(history).index.max())) != run.config.denoiser.steps:
        raise InputError(
            f"{folder}: was trained for {done} steps, and other runs may stand on it; the config asks for "
            f"{run.config.denoiser.steps}: give another `learnt`, or as many steps"
        )
