"""A run that makes images without a look at any real row, so that its denoiser's ledger speaks for them too.

Label vectors are not lent by real rows but say one finding and deny the others; how many are made is what the config
says; no judge that was trained on the patients chooses among them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from medlt.checks.folds import Crossfit
from medlt.synthesis.plan import Collection as TrainRows


def only(asked: Sequence[str], findings: tuple[str, ...]) -> TrainRows:
    """One row a finding, `only-FINDING`, which has that finding and no other; of no patient, in fold 0."""
    index = pd.Index([named(name) for name in asked], name="uid")
    rows = {name: [float(name == one) for one in asked] for name in findings}
    return TrainRows(pd.DataFrame({"patient_id": "", "fold": 0, **rows}, index=index), findings, tuple(asked))


def named(finding: str) -> str:
    """The made-up row of a finding, as plans name it."""
    return "only-" + re.sub(r"\W+", "-", finding)


def unjudged(asked: Sequence[str], findings: tuple[str, ...]) -> Crossfit:
    """No judges."""
    fold = only(asked, findings).table["fold"]
    return Crossfit((), fold, pd.DataFrame(index=fold.index, columns=list(findings), dtype=float))
