"""The tables for the documentation are the run's, and stay tables whatever an arm is called."""

import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from medlt.report.formatting import interval
from medlt.report.markdown import arms_table
from medlt.types import InputError


def cells(text: str) -> list[list[str]]:
    """Rows of a Markdown table, split at the bars that are not escaped."""
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines()]


def test_arms_in_order_with_both_differences(experiment: Path, known: SimpleNamespace) -> None:
    arms, table = (pd.read_parquet(experiment / f"{name}.parquet") for name in ("arms", "comparisons"))
    head, rule, *rows = cells(arms_table(experiment))
    assert {len(row) for row in (head, rule, *rows)} == {7}
    assert [row[0] for row in rows][-1] == r"**fusion\_one**"
    tail = table.query("finding == 'tail' and metric == 'AP'").set_index(["arm", "control"]).to_dict("index")
    for row, arm in zip(rows[1:], arms.to_dict("records")[1:], strict=True):
        own = tail[arm["arm"], arm["control"]]
        assert row[4:] == [interval(own), own["verdict"], interval(tail[arm["arm"], "real"])]
    assert "<script" not in arms_table(experiment)


def test_a_bar_in_a_name_stays_in_its_cell(experiment: Path) -> None:
    for name in ("arms", "scores", "comparisons"):
        table = pd.read_parquet(experiment / f"{name}.parquet")
        table.replace({"fusion_one": "a|b\nc"}).to_parquet(experiment / f"{name}.parquet")
    rows = cells(arms_table(experiment))
    assert {len(row) for row in rows} == {7}
    assert rows[-1][0] == r"**a\|b c**"


def test_a_run_that_is_no_experiment_is_refused(evaluated: Path) -> None:
    with pytest.raises(InputError, match="is no experiment"):
        arms_table(evaluated)
