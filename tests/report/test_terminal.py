"""The table for the terminal says what the report says."""

import io
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console

from medlt.report.html import write_report
from medlt.report.terminal import report_table


def shown(run: Path) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=200).print(report_table(run))
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
    import pandas as pd

    rows = pd.read_parquet(evaluated / "manifest.parquet").rename(columns={"Nodule": "[bold]Nodule[/x]"})
    rows.to_parquet(evaluated / "manifest.parquet")
    assert "[bold]Nodule[/x]" in shown(evaluated)


def test_an_experiment_lists_its_arms_with_the_verdict_above(experiment: Path, known: SimpleNamespace) -> None:
    import pandas as pd

    from medlt.report.formatting import interval

    text = shown(experiment)
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line]
    assert [line[0] for line in lines] == [*known.experiment[:-1], "fusion_one (primary)"]
    table = pd.read_parquet(experiment / "comparisons.parquet")
    row = table.query("arm == 'fusion_one' and control == 'copies_one' and finding == 'tail' and metric == 'AP'")
    assert lines[-1][4:] == [interval(row.iloc[0].to_dict()), row["word"].iloc[0]]
    assert "As the interval says" in text


def test_a_run_shows_its_findings_and_the_difference_to_its_control(compared: Path, method: str) -> None:
    import pandas as pd

    from medlt.report.formatting import signed

    table = pd.read_parquet(compared / "comparisons.parquet")
    asked = table[(table["arm"] == method) & (table["control"] == "duplicated") & (table["metric"] == "AP")]
    row = asked.set_index("finding").loc["Pneumothorax"]
    line = next(line for line in shown(compared).splitlines() if "Pneumothorax" in line)
    assert f"{signed(row['difference'])} [{signed(row['low'])}, {signed(row['high'])}]" in line
