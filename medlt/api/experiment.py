"""What an experiment compares, from the runs and arms that a caller gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medlt import config as configs
from medlt.api.collection import Collection, as_collection
from medlt.api.defaults import cores, is_quick, quick_section
from medlt.api.run import Run, load
from medlt.files import REAL_ROWS
from medlt.types import InputError

Given = Run | str | Path
SAME = ("network", "weights", "frozen", "precision", "size", "steps", "batch_size")
"""Settings of a run's classifier that an experiment on it uses too."""


def _is_run(given: object) -> bool:
    return isinstance(given, Run) or (
        isinstance(given, str | Path) and (Path(given).expanduser() / "config.yaml").is_file()
    )


def _run(given: Given) -> Run:
    run = given if isinstance(given, Run) else load(given)
    if not isinstance(run.config, configs.RunConfig) or not (run.folder / "manifest.parquet").is_file():
        raise InputError(f"{run.folder.absolute()}: has no synthetic images; give a run that `medlt.augment` finished")
    return run


def real_rows(collection: Run | Collection | str | Path) -> Collection:
    """Return the real rows of an experiment: a collection, or the rows that a run filed."""
    if _is_run(collection):
        folder = collection.folder if isinstance(collection, Run) else Path(str(collection)).expanduser()
        return Collection.from_manifest(folder / REAL_ROWS)
    assert not isinstance(collection, Run)
    return as_collection(collection)


def sources_of(collection: Run | Collection | str | Path, runs: Given | Mapping[str, Given] | None) -> dict[str, Run]:
    """Return the runs whose images are tested, by name. Raises InputError for one that is not finished."""
    if runs is None:
        runs = collection if _is_run(collection) else {}  # type: ignore[assignment]
    if isinstance(runs, Mapping):
        return {name: _run(one) for name, one in runs.items()}
    assert runs is not None
    run = _run(runs)
    assert isinstance(run.config, configs.RunConfig)
    return {run.config.method.kind: run}


def arms_of(
    sources: Mapping[str, Run], arms: Mapping[str, Mapping[str, Any] | None] | None
) -> dict[str, dict[str, Any]]:
    """Return the arms: those given, or one for each source. Raises InputError where there is nothing to compare."""
    if arms is None and not sources:
        raise InputError(
            "nothing to compare: give runs=RUN, whose images are tested, or arms={'focal': {'loss': 'focal'}}"
        )
    if arms is None:
        return {name: {"source": name} for name in sources}
    return {name: dict(arm or {}) for name, arm in arms.items()}


def usual(collection: Collection, sources: Mapping[str, Run], device: str | None) -> dict[str, Any]:
    """Return an experiment's settings for someone who gives none: the first run's device, tail and image size.

    device: that of the caller, who may give one. On a CPU, a small collection gets the brief comparison of
    `medlt.api.defaults.QUICK`, with one thread.
    """
    tree: dict[str, Any] = {"sources": {name: {"run": str(run.folder)} for name, run in sources.items()}}
    first = next(iter(sources.values()), None)
    config = None if first is None else first.config
    assert config is None or isinstance(config, configs.RunConfig)
    quick = is_quick(collection, device or ("cpu" if config is None else config.device))
    tree["threads"] = 1 if quick else cores()  # in one process: more would need `if __name__ == "__main__"`
    if quick:
        tree["evaluation"] = quick_section("evaluation")
    if config is None:
        return tree
    tree |= {"device": config.device, "targets": config.targets.model_dump(mode="json")}
    tree["classifier"] = config.classifier.model_dump(mode="json", include=set(SAME))
    return tree
