"""The section on where findings are: every number of the table is shown, means first, hostile names escaped."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medlt.evaluation.localisation import COLUMNS, IMAGE_METRICS
from medlt.metrics.localisation import MEASURES
from medlt.report.html import write_report
from medlt.report.localisation import section
from medlt.types import InputError

Read = Callable[..., Any]


def table(hostile: str) -> pd.DataFrame:
    """Two stages of maps for a finding and the mean, and images; one value is unknown."""
    maps = [
        (finding, stage, "train", metric, 0.9 - 0.1 * i - 0.3 * (stage == "prior"), 0.5, 0.95, 12, 9, "")
        for finding in (hostile, "macro")
        for stage in ("used", "prior")
        for i, metric in enumerate(MEASURES)
    ]
    images = [
        (finding, "images", "made", metric, 0.1 * i, -0.25, 0.75, 7, 5, "few")
        for finding in ("overall", hostile)
        for i, metric in enumerate(IMAGE_METRICS)
    ]
    rows = pd.DataFrame([*maps, *images], columns=list(COLUMNS))
    unknown = (rows["metric"] == "label_mass_correlation") & (rows["finding"] == "overall")
    rows.loc[unknown, ["value", "low", "high"]] = np.nan
    return rows


@pytest.fixture
def located(evaluated: Path, known: SimpleNamespace) -> Path:
    table(known.hostile).to_parquet(evaluated / "localisation.parquet")
    return evaluated


def test_without_the_table_there_is_no_section(evaluated: Path) -> None:
    assert 'id="localisation"' not in write_report(evaluated).read_text()
    assert json.loads((evaluated / "report.json").read_text())["localisation"] is None
    assert section(None) is None


def test_maps_and_images_have_one_line_each_with_their_numbers(
    located: Path, known: SimpleNamespace, page_of: Read
) -> None:
    rows = page_of(located).rows["localisation"]
    assert [row[:4] for row in rows[1:5]] == [
        ["train", "mean of findings", "used", "12"],
        ["train", "mean of findings", "prior", "12"],
        ["train", known.hostile.replace("_", " "), "used", "12"],
        ["train", known.hostile.replace("_", " "), "prior", "12"],
    ]
    numbers = dict(zip(MEASURES, (0.9, 0.8, 0.7, 0.6, 0.5), strict=True))
    assert rows[1][4] == f"{numbers['auroc']:.2f} 0.50 to 0.95"
    assert [cell.split()[0] for cell in rows[1][4:]] == [
        f"{numbers[name]:.2f}" for name in ("auroc", "pointing", "top", "lesion", "area")
    ]
    assert rows[2][4].startswith("0.60")
    assert [row[0] for row in rows[6:8]] == ["all", known.hostile.replace("_", " ")]
    assert rows[7][2:] == ["0.00 -0.25 to 0.75", "0.10", "0.20", "0.30 -0.25 to 0.75", "0.40 -0.25 to 0.75"]
    assert rows[6][-1] == "–"


def test_the_twin_repeats_the_table(located: Path) -> None:
    write_report(located)
    twin = json.loads((located / "report.json").read_text())["localisation"]
    assert len(twin) == len(pd.read_parquet(located / "localisation.parquet"))
    assert {tuple(row) for row in map(sorted, twin)} == {tuple(sorted(COLUMNS))}


def test_a_table_of_images_alone_has_no_lines_of_maps(located: Path, known: SimpleNamespace, page_of: Read) -> None:
    rows = table(known.hostile)
    rows[rows["rows"] == "made"].to_parquet(located / "localisation.parquet")
    page = page_of(located)
    assert len(page.rows["localisation"]) == 3
    assert "Pixel AUROC" not in page.text("localisation")


def test_a_table_without_a_column_is_one_clear_line(located: Path, known: SimpleNamespace) -> None:
    table(known.hostile).drop(columns="low").to_parquet(located / "localisation.parquet")
    with pytest.raises(InputError, match=r"localisation\.parquet: has no column 'low'"):
        write_report(located)
