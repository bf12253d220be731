"""The table for the terminal says what the report says."""

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from rich.cells import cell_len
from rich.console import Console

from medlt.report.formatting import interval, signed
from medlt.report.html import write_report
from medlt.report.terminal import WHOLE, report_table, wrapped


def shown(run: Path, width: int = 200) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=width).print(report_table(run))
    return buffer.getvalue()


def test_rows_agree_with_the_report(evaluated: Path, known: SimpleNamespace) -> None:
    text, page = shown(evaluated), write_report(evaluated).read_text()
    assert "verdict: no evidence" in text
    line = next(line for line in text.splitlines() if "Pneumothorax" in line)
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells[1:3] == ["5", "13"]
    assert cells[3].split(" ± ")[0] in page
    assert cells[6] in page
    assert known.hostile in text


def test_without_evaluation_it_gives_the_counts(augmented: Path) -> None:
    text = shown(augmented)
    assert "no verdict yet" in text
    assert "not run yet" in text
    assert "13" in text


def test_markup_in_a_name_is_printed_not_obeyed(evaluated: Path) -> None:
    rows = pd.read_parquet(evaluated / "manifest.parquet").rename(columns={"Nodule": "[bold]Nodule[/x]"})
    rows.to_parquet(evaluated / "manifest.parquet")
    assert "[bold]Nodule[/x]" in shown(evaluated)


def test_an_experiment_lists_its_arms_with_the_verdict_above(experiment: Path, known: SimpleNamespace) -> None:
    text = shown(experiment)
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line]
    assert [line[0] for line in lines] == [*known.experiment[:-1], "fusion_one (primary)"]
    table = pd.read_parquet(experiment / "comparisons.parquet")
    row = table.query("arm == 'fusion_one' and control == 'copies_one' and finding == 'tail' and metric == 'AP'")
    assert lines[-1][4:] == [interval(row.iloc[0].to_dict()), row["verdict"].iloc[0]]
    assert "As the interval says" in text


def test_a_run_shows_its_findings_and_the_difference_to_its_control(compared: Path, method: str) -> None:
    table = pd.read_parquet(compared / "comparisons.parquet")
    asked = table[(table["arm"] == method) & (table["control"] == "duplicated") & (table["metric"] == "AP")]
    row = asked.set_index("finding").loc["Pneumothorax"]
    line = next(line for line in shown(compared).splitlines() if "Pneumothorax" in line)
    assert f"{signed(row['difference'])} [{signed(row['low'])}, {signed(row['high'])}]" in line


LONG = ("Enlarged Cardiomediastinum", "Calcification of the Aorta", "Subcutaneous Emphysema", "Lobar Atelectasis")
WIDTHS = (200, 130, 100, 80, 60, 40)


@pytest.fixture
def long_names(evaluated: Path, known: SimpleNamespace) -> Path:
    """A run whose findings have the longest names of CXR-LT, and whose verdict has an interval in its sentence."""
    names = dict(zip(known.findings, LONG, strict=False))
    manifest = pd.read_parquet(evaluated / "manifest.parquet").rename(columns=names)
    manifest.attrs = {"findings": list(names.values())}
    manifest.to_parquet(evaluated / "manifest.parquet")
    for name in ("scores", "comparisons"):
        table = pd.read_parquet(evaluated / f"{name}.parquet").replace({"finding": names})
        table = table[table["finding"] != known.hostile]
        if name == "comparisons":
            table = table.assign(difference=-0.123, low=-0.456, high=0.321)
        table.to_parquet(evaluated / f"{name}.parquet")
    verdict = json.loads((evaluated / "verdict.json").read_text())
    sentence = " ".join(f"{word} [−0.{n:03d}, +0.{n:03d}] and 0.{n:03d} ± 0.001" for n, word in enumerate("abcdefghij"))
    (evaluated / "verdict.json").write_text(json.dumps(verdict | {"sentence": sentence}))
    return evaluated


@pytest.mark.parametrize("width", WIDTHS)
def test_names_numbers_and_intervals_are_whole_at_any_width(long_names: Path, width: int) -> None:
    lines = shown(long_names, width).splitlines()
    text = "\n".join(lines)
    assert "…" not in text
    assert max(map(cell_len, lines)) <= width
    for name in LONG:
        (at,) = [i for i, line in enumerate(lines) if name in line]
        assert any("−0.123 [−0.456, +0.321]" in line for line in lines[at : at + 2])
    for n in range(10):
        assert f"[−0.{n:03d}, +0.{n:03d}]" in text
        assert f"0.{n:03d} ± 0.001" in text
    assert "[interval]" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_left_out_is_named(long_names: Path, width: int, known: SimpleNamespace) -> None:
    text = shown(long_names, width)
    cells = re.findall(r"\d\.\d{3} ± \d\.\d{3}", text.split("\nverdict")[0].split("a [")[0])
    if "In report.html" in text:
        assert cells == []
        assert all(f"AP {arm}" in " ".join(text.split()) for arm in known.arms)
    else:
        assert len(cells) == (len(LONG) + 2 - 1) * 3  # two groups; Nodule, here the third name, has no AP
    assert ("In report.html" in text) == (width <= 100)
    assert ("┃" in text) == (width == 200)


@pytest.mark.parametrize("width", WIDTHS)
def test_arms_are_whole_at_any_width(experiment: Path, known: SimpleNamespace, width: int) -> None:
    arms = pd.read_parquet(experiment / "arms.parquet")
    table = pd.read_parquet(experiment / "comparisons.parquet").query("finding == 'tail' and metric == 'AP'")
    lines = shown(experiment, width).splitlines()
    assert max(map(cell_len, lines)) <= width
    for arm, control in zip(arms["arm"], arms["control"], strict=True):
        at = next(i for i, line in enumerate(lines) if line.strip("│ ").startswith(arm))
        pair = table[(table["arm"] == arm) & (table["control"] == control)]
        for row in pair.to_dict("records"):
            assert any(interval(row) in line for line in lines[at : at + 3])


def test_parts_are_never_broken() -> None:
    text = "gain +0.012 [−0.003, +0.027], AP 0.350 ± 0.020 (see [a, b])."
    assert WHOLE.findall(text) == [
        "gain", "+0.012", "[−0.003, +0.027],", "AP", "0.350 ± 0.020", "(see", "[a, b]).",
    ]  # fmt: skip
    assert list(wrapped(["aa", "bb", "cccccc", "d"], 5)) == ["aa bb", "cccccc", "d"]
