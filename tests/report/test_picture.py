"""verdict.svg is one well-formed drawing that needs nothing else."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd

from medlt.report.collect import collect
from medlt.report.formatting import interval
from medlt.report.html import write_report
from medlt.report.picture import draw

SVG = "{http://www.w3.org/2000/svg}"


def test_the_picture_holds_every_arm_and_its_interval(experiment: Path) -> None:
    root = ElementTree.fromstring(draw(collect(experiment)))
    texts = ["".join(node.itertext()) for node in root.iter(f"{SVG}text")]
    table = pd.read_parquet(experiment / "comparisons.parquet").query("finding == 'tail' and metric == 'AP'")
    controls = pd.read_parquet(experiment / "arms.parquet").set_index("arm")["control"]
    for row in table.to_dict("records"):
        if controls[row["arm"]] == row["control"]:
            assert interval(row) in texts
    assert any("345 test images of 123 patients, 3 seeds per arm" in text for text in texts)
    assert root.findtext(f"{SVG}title")
    assert root.find(f"{SVG}rect") is not None  # a background of its own: it is shown on light pages and dark


def test_it_stands_alone_inside_its_frame(experiment: Path) -> None:
    text = draw(collect(experiment))
    root = ElementTree.fromstring(text)
    assert not re.search(r"url\(|href|var\(|@import|<script|<image", text)
    width, height = float(str(root.get("width"))), float(str(root.get("height")))
    for line in root.iter(f"{SVG}line"):
        assert 0 <= float(str(line.get("x1"))) <= float(str(line.get("x2"))) <= width - 48
        assert 0 <= float(str(line.get("y2"))) <= height - 70
    assert write_report(experiment).with_name("verdict.svg").read_text() == text


def test_without_comparisons_nothing_is_drawn(experiment: Path) -> None:
    (experiment / "comparisons.parquet").unlink()
    assert "Nothing was compared yet" in draw(collect(experiment))


def test_a_run_that_is_no_experiment_leaves_no_picture(evaluated: Path) -> None:
    write_report(evaluated)
    assert not (evaluated / "verdict.svg").exists()
