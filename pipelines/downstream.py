"""The kept images of one variant in the arms of the comparison."""

from __future__ import annotations

import json

from medlt.files import digest
from medlt.runs import Run
from medlt.types import Batch, Finding
from medlt.writer import DatasetWriter
from pipelines import proving
from pipelines.learnt import Learnt
from pipelines.publishing import publish
from pipelines.variant import Variant

ARM = "fusion"


def kept(found: list[Finding]) -> set[str]:
    """Uids of the best of each slot."""
    return {finding.uid for finding in found if finding.check == "best_of" and finding.passed}


def prove(ready: Learnt, one: Variant, batch: Batch, found: list[Finding]) -> dict[str, float]:
    """The arms of the comparison with its kept images: tail macro AP against the duplicated control."""
    base, home = ready.run, ready.run.path("variants", one.name)
    learnt = base.config.learnt or base.path("stages")
    run = Run(home, one.config.model_copy(update={"out": home, "learnt": learnt}))
    DatasetWriter(home).write("000000", batch, found, sorted(kept(found)))
    made = publish(run, ready.real, batch.rows, ARM, digest(base.told()["digests"]))
    proving.evaluate(run, ready.real, made, ARM, ready.progress)
    told = json.loads(run.path("verdict.json").read_text())["comparison"] or {}
    numbers = {name: told.get(name) for name in ("difference", "low", "high")}
    return {f"tail_ap_{name}": float("nan") if value is None else value for name, value in numbers.items()}
