"""How every recipe begins: the config's data opened, looked at and filed, before anything is learnt."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import pandas as pd

from medlt import config as configs
from medlt.data.manifest import Manifest
from medlt.data.source import open_data, readable
from medlt.files import write_text
from medlt.runs import Experiment, Finished, Folder, Run
from medlt.types import InputError
from pipelines import budgeting
from pipelines.door import look
from pipelines.stages import Collection


def _opened(config: configs.RunConfig | configs.VerdictConfig) -> tuple[Collection, pd.DataFrame]:
    """The real rows, as filed by an earlier try or as they are, and what could not be read."""
    folder = config.out / "stages" / "data"
    if isinstance(config.data, configs.PhantomData):
        _folder(config)  # its rows are written into it
    manifest = open_data(config.data, seed=config.seed, folder=folder / "phantom")
    failures = pd.DataFrame(columns=["uid", "code", "reason"])
    if (seen := folder / "manifest.parquet").exists():
        manifest, failures = Manifest.read(seen), pd.read_csv(config.out / "failures.csv")
    else:
        manifest, failures = readable(manifest, skip=config.skip_unreadable)
        if not (isinstance(config, configs.RunConfig) and config.blind):  # whether it starts must not tell of a patient
            manifest.require_positives()
    return Collection(manifest, config.need, folder / "images", _asked(config, manifest)), failures


def _asked(config: configs.RunConfig | configs.VerdictConfig, manifest: Manifest) -> tuple[str, ...]:
    """What a blind run makes: what its config says, not what the counts of its patients say."""
    if not isinstance(config, configs.RunConfig) or config.privacy is None or not config.blind:
        return ()
    given, known = config.privacy.findings, [name for name in manifest.findings if name != manifest.no_finding]
    if strange := [name for name in given if name not in known]:
        raise InputError(f"privacy.findings: {strange[0]!r} is no finding of the data ({', '.join(known)})")
    return given or tuple(known)


def _folder(config: configs.RunConfig | configs.VerdictConfig) -> Run | Experiment:
    """The run folder of a recipe, or of an experiment, some of whose config may change."""
    return Run(config.out, config) if isinstance(config, configs.RunConfig) else Experiment(config.out, config)


F = TypeVar("F", bound=Folder)


def _filed(run: F, real: Collection, failures: pd.DataFrame) -> F:
    """The run folder, with the rows it stands on."""
    manifest, seen = real.manifest, real.cache.parent / "manifest.parquet"
    if not seen.exists():
        write_text(run.path("failures.csv"), failures.to_csv(index=False))
        manifest.write(seen)
    run.record(counts={"real": len(manifest.rows), "failed": len(failures)}, digests={"manifest": manifest.digest()})
    return run


def collect(config: configs.RunConfig) -> tuple[Run, Collection]:
    """Look at everything that can be wrong, then open the run folder: bad input leaves nothing behind."""
    real, failures = _opened(config)
    if not real.shortfall():
        wanted = f"{config.need.times} times its" if config.need.times else f"{config.need.target}"
        raise InputError(f"no tail finding has fewer than {wanted} train positives: nothing to fill; change need")
    if config.device == "cuda":
        require_cuda()
    look(config, real.train, len(real.manifest.split("val").rows))
    budgeting.look(config, real)
    return _filed(Run(config.out, config), real, failures), real


def finished(config: configs.RunConfig) -> tuple[Finished, Collection]:
    """A run that has ended, and its real rows as it filed them. Raises InputError if it has not."""
    run, folder = Finished(config.out, config), config.out / "stages" / "data"
    manifest = Manifest.read(folder / "manifest.parquet")
    return run, Collection(manifest, config.need, folder / "images", _asked(config, manifest))


def source(name: str, given: configs.Source) -> configs.RunConfig:
    """The config of a source's run, in its folder. Raises InputError if it is not there nor can be made."""
    if given.config is None:
        folder = Path(str(given.run))
        if not all((folder / file).is_file() for file in ("config.yaml", "manifest.parquet")):
            raise InputError(f"sources.{name}: {folder} is no finished run; give one that `medlt augment` made")
        return configs.load(folder / "config.yaml").model_copy(update={"out": folder})
    config = configs.load(given.config, given.set)
    told = (config.out / "config.yaml").read_text() if (config.out / "config.yaml").is_file() else ""
    if told != configs.dump(config) and (told or (config.out / "manifest.parquet").is_file()):
        raise InputError(f"sources.{name}: {config.out} was made by another config; give it as `run`, or change out")
    return config


def collect_held(config: configs.VerdictConfig) -> tuple[Experiment, Collection]:
    """The same for an experiment, which needs all three splits and a tail."""
    for name, given in config.sources.items():
        source(name, given)
    real, failures = _opened(config)
    for split in ("train", "val", "test"):
        if real.manifest.split(split).rows.empty:
            raise InputError(f"no image has split {split}: arms learn on train, are chosen on val, and judged on test")
    if not real.tail:
        raise InputError(f"no finding is tail ({real.groups.rule}): nothing to decide on; raise need.tail_below")
    if config.device == "cuda":
        require_cuda()
    return _filed(Experiment(config.out, config), real, failures), real


def require_cuda() -> None:
    """Raises InputError where torch sees no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise InputError("device: cuda, but torch sees no such device here; write device: cpu, or mend the driver")
