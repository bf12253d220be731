"""The published figures in the report: every number with its interval, in page, terminal and JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from medlt.report.benchmark import section
from medlt.report.html import write_report
from medlt.report.terminal import report_table

Read = Callable[..., Any]


def table(arm: str) -> pd.DataFrame:
    """Two test sets, an arm and its difference to a control, two metrics, two groups; one value is missing."""
    rows = [
        (test_set, images, name, control, metric, group, base + (0.01 if group == "tail" else 0.0), base - 0.1, 0.5, 9)
        for test_set, images in (("test", 60), ("balanced test", 20))
        for name, control in (("real", ""), (arm, ""), (arm, "real"))
        for metric, base in (("mAP", 0.25), ("mF1", 0.125))
        for group in ("all", "tail")
    ]
    columns = "test_set images arm control metric group value low high patients".split()
    made = pd.DataFrame(rows, columns=columns)
    made.loc[(made["arm"] == "real") & (made["metric"] == "mF1"), ["value", "low", "high"]] = float("nan")
    return made


@pytest.fixture
def published(experiment: Path) -> Path:
    """An experiment with the figures, whose groups have a rule."""
    table("fusion").to_parquet(experiment / "benchmark.parquet")
    verdict = json.loads((experiment / "verdict.json").read_text())
    (experiment / "verdict.json").write_text(json.dumps(verdict | {"benchmark": {"rule": "head > 1000"}}))
    return experiment


def test_without_the_table_there_is_no_section(experiment: Path) -> None:
    assert 'id="benchmark"' not in write_report(experiment).read_text()
    assert report_table(experiment).further == ()
    assert section(None, None) is None


def test_the_page_has_each_figure(published: Path, page_of: Read) -> None:
    page = page_of(published)
    rows = page.rows["benchmark"]
    assert rows[0] == ["arm", "mAP", "mF1"]
    assert rows[1] == ["all", "tail", "all", "tail"]
    assert rows[2] == ["real", "0.250 [0.150, 0.500]", "0.260 [0.150, 0.500]", "–", "–"]
    assert rows[4][:2] == ["fusion − real", "+0.250 [+0.150, +0.500]"]
    assert len(rows) == 2 * 5
    assert "head > 1000" in page.text("benchmark")
    assert "balanced test, 20 images" in page.text("benchmark")
    numbers = json.loads((published / "report.json").read_text())["benchmark"]
    assert len(numbers) == len(table("fusion"))


def test_the_terminal_shows_the_balanced_set_over_all_findings(published: Path) -> None:
    written = io.StringIO()
    Console(file=written, width=120).print(report_table(published))
    text = written.getvalue()
    assert "as benchmarks publish it: balanced test, 20 images" in text
    line = next(line for line in text.splitlines() if "fusion − real" in line)
    assert line.split("│")[1:-1] == [" fusion − real ", " +0.250 [+0.150, +0.500] ", " +0.125 [+0.025, +0.500] "]


def test_page_and_terminal_follow_the_metric_of_the_verdict(experiment: Path, page_of: Read) -> None:
    verdict = json.loads((experiment / "verdict.json").read_text())
    (experiment / "verdict.json").write_text(json.dumps(verdict | {"metric": "AUROC"}))
    differences = pd.read_parquet(experiment / "comparisons.parquet")
    page = page_of(experiment)
    assert "Difference in tail macro AUROC" in page.text("comparisons")
    control = pd.read_parquet(experiment / "arms.parquet").set_index("arm").at["fusion_one", "control"]
    own = differences[(differences["arm"] == "fusion_one") & (differences["control"] == control)]
    (value,) = own.query("metric == 'AUROC' and finding == 'tail'")["difference"]
    row = next(row for row in page.rows["arms"] if row[0] == "fusion one primary")
    assert any(cell.startswith(f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")) for cell in row)
    assert "test tail AUROC" in [column.name for column in report_table(experiment).columns]
