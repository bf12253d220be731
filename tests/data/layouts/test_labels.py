"""Label specifications against a plain reading of the rules, and what they refuse."""

import json
import math
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from medlt.cli import app
from medlt.data.layouts import from_csv, read_layout, tree
from medlt.data.layouts.label_spec import PRESETS
from medlt.data.layouts.layout_result import Draft, LayoutResult, finish
from medlt.data.layouts.options import Options, parse
from medlt.data.manifest import Manifest
from medlt.types import InputError

NAN = math.nan
FINDINGS = ("Pneumonia", "Lung Opacity", "Support Devices", "No Finding")
VALUES = st.sampled_from([1.0, 0.0, -1.0, NAN])


def result_of(values: list[tuple[float, ...]], findings: tuple[str, ...] = FINDINGS, **options: Any) -> LayoutResult:
    index = pd.Index([f"u{i}" for i in range(len(values))], name="uid")
    rows = pd.DataFrame(values, columns=list(findings), index=index, dtype="float64")
    rows = rows.assign(path="x.png", exists=True, patient_id=list(index), split="train", view="PA")
    matched = tree.MatchedImages(rows, tree.images([]))
    given = parse(Options, "csv", {"all_zero": "keep", **options})
    return finish(Draft(matched, findings, Path("root"), Path("labels.csv")), given)


def by_hand(row: tuple[float, ...], blank: str, uncertain: str, normal: bool, implied: bool) -> list[float]:
    """The rules in plain words, in their order."""
    means = {"unknown": NAN, "positive": 1.0, "negative": 0.0}
    pneumonia, opacity, devices, none = (means[blank] if math.isnan(v) else v for v in row)
    pneumonia, opacity, devices, none = (
        means[uncertain] if v == -1 else v for v in (pneumonia, opacity, devices, none)
    )
    if normal and none == 1:
        pneumonia, opacity = (0.0 if math.isnan(v) else v for v in (pneumonia, opacity))
    if implied and pneumonia == 1:
        opacity = 1.0
    return [pneumonia, opacity, devices, none]


@settings(max_examples=80)
@given(
    values=st.lists(st.tuples(VALUES, VALUES, VALUES, VALUES), min_size=1, max_size=8),
    blank=st.sampled_from(["unknown", "negative"]),
    uncertain=st.sampled_from(["unknown", "positive", "negative"]),
    normal=st.booleans(),
    implied=st.booleans(),
)
def test_labels_follow_the_rules_and_the_report_counts_what_changed(
    values: list[tuple[float, ...]], blank: str, uncertain: str, normal: bool, implied: bool
) -> None:
    given = {"implies": ["Pneumonia=Lung Opacity"]} if implied else {}
    result = result_of(values, blank=blank, uncertain=uncertain, no_finding_implies_absent=normal, **given)
    plain = [by_hand(row, blank, uncertain, normal, implied) for row in values]
    np.testing.assert_array_equal(result.manifest.labels(), np.array(plain, np.float32))
    report = result.summary()["labels"]
    blanks, ones = np.isnan(values).sum(), (np.array(values) == -1).sum()
    assert sum(report["changed"].get("blank", {}).values()) == (blanks if blank == "negative" else 0)
    assert sum(report["changed"].get("-1", {}).values()) == ones
    steps = [by_hand(row, blank, uncertain, on, False) for row in values for on in (False, normal)]
    became = sum(
        math.isnan(a) != math.isnan(b)
        for x, y in zip(steps[::2], steps[1::2], strict=True)
        for a, b in zip(x, y, strict=True)
    )
    assert sum(report["changed"].get("no finding", {}).values()) == became
    assert report["contradictions"] == sum(row[3] == 1 and (row[0] == 1 or row[1] == 1) for row in plain)


@pytest.mark.parametrize("labeler", PRESETS)
def test_a_table_of_a_labeler_needs_a_meaning_and_a_preset_gives_it(labeler: str) -> None:
    """The trap: with blanks as unknown No Finding has no negative, and most findings are hardly ever absent."""
    values = [(1, 1, NAN, NAN), (NAN, NAN, 1, 1), (-1, NAN, NAN, NAN), (NAN, NAN, NAN, 1)]
    with pytest.raises(InputError, match=r"No Finding is 1 or blank and never 0, .* --labeler .* or --blank unknown"):
        result_of(values)
    kept = result_of(values, blank="unknown")
    assert any(
        note.startswith("never absent: Pneumonia, Lung Opacity, Support Devices and 1 more") for note in kept.notes
    )
    result = result_of(values, labeler=labeler)
    wanted = [[1, 1, 0, 0], [0, 0, 1, 1], [NAN, 0, 0, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(result.manifest.labels(), np.array(wanted, np.float32))
    assert not any(note.startswith("never absent") for note in result.notes)


def test_a_config_of_a_labelers_table_is_refused_too(tmp_path: Path) -> None:
    rows = {"uid": ["a", "b"], "path": ["a.png", "b.png"], "patient_id": ["1", "2"], "split": "train", "view": "PA"}
    pd.DataFrame(rows | {"Mass": [1, None], "No Finding": [None, 1]}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match=r"t\.csv: No Finding is 1 or blank and never 0, .* use `medlt manifest csv`"):
        from_csv(table=tmp_path / "t.csv", findings=("Mass", "No Finding"))
    assert from_csv(table=tmp_path / "t.csv", findings=("Mass",)).findings == ("Mass",)


def test_a_hierarchy_is_followed_to_its_top() -> None:
    findings = ("Opacity", "Consolidation", "Pneumonia", "Mass")
    values = [(0, NAN, 1, NAN), (NAN, 1, 0, 0), (0, 0, NAN, 1), (NAN, 0, -1, 0)]
    for order in (
        ["Consolidation=Opacity", "Pneumonia=Consolidation"],
        ["Pneumonia=Consolidation", "Consolidation=Opacity"],
    ):
        result = result_of(values, findings, implies=order)
        wanted = [(1, 1, 1, NAN), (1, 1, 0, 0), (0, 0, NAN, 1), (NAN, 0, NAN, 0)]
        np.testing.assert_array_equal(result.manifest.labels(), np.array(wanted, np.float32))
        changed = result.summary()["labels"]["changed"]
        assert changed["Pneumonia=Consolidation"] == {"Consolidation": 1}
        assert changed["Consolidation=Opacity"] == {"Opacity": 2}
    several = result_of(values, findings, implies=["Pneumonia=Consolidation", "Pneumonia=Opacity"])
    np.testing.assert_array_equal(several.manifest.rows["Opacity"], [1, NAN, 0, NAN])


def test_an_alias_joins_collections_and_takes_masks_along(tmp_path: Path) -> None:
    for name, finding in (("a", "Effusion"), ("b", "Pleural Effusion")):
        rows = {"uid": [f"{name}1", f"{name}2"], "patient_id": [f"{name}1", f"{name}2"], "split": "train", "view": "PA"}
        masks = {f"mask_{finding}": [f"{name}.png", None]}
        pd.DataFrame(rows | {finding: [1, 0]} | masks).to_csv(tmp_path / f"{name}.csv", index=False)
        for uid in rows["uid"]:
            (tmp_path / f"{uid}.png").touch()
    alias = {"findings": "Effusion", "alias": ["Pleural Effusion=Effusion"], "all_zero": "keep"}
    first = read_layout("csv", tmp_path / "a.csv", alias).manifest
    second = read_layout("csv", tmp_path / "b.csv", alias | {"findings": "Pleural Effusion"}).manifest
    both = first.join(second)
    assert both.findings == ("Pleural Effusion",)
    assert both.rows["Pleural Effusion"].tolist() == [1, 0, 1, 0]
    assert set(both.masks()) == {"a1", "b1"}


def test_one_file_holds_the_specification_and_options_replace_its_keys(tmp_path: Path) -> None:
    file = tmp_path / "labels.yaml"
    file.write_text("labeler: chexbert\nuncertain: positive\nimplies:\n  Pneumonia: Lung Opacity\n")
    values = [(1, NAN, NAN, NAN), (-1, 0, NAN, NAN), (NAN, NAN, NAN, 1)]
    spec = result_of(values, label_spec=file).summary()["labels"]
    assert (spec["labeler"], spec["blank"], spec["uncertain"]) == ("chexbert", "negative", "positive")
    assert spec["implies"] == {"Pneumonia": ["Lung Opacity"]}
    labels = result_of(values, label_spec=file).manifest.labels()
    np.testing.assert_array_equal(labels, [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1]])
    labels = result_of(values, label_spec=file, uncertain="negative", blank="unknown").manifest.labels()
    np.testing.assert_array_equal(labels, np.array([[1, 1, NAN, NAN], [0, 0, NAN, NAN], [0, 0, NAN, 1]], np.float32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blanks: negative", r"spec\.yaml: .*blanks.*did you mean .?blank"),
        ("blank: absent", r"spec\.yaml: blank: 'absent' is not valid; choose one of unknown, negative"),
        ("blank: negative\nblank: unknown", "'blank' is given twice"),
        ("- a", r"spec\.yaml: holds no settings; begin with one of labeler, "),
        ("implies: {A: B, B: A}", r"spec\.yaml: implies: . implies . implies .: a circle"),
        ("alias: {A: [C], B: [C]}", r"spec\.yaml: alias: C stands for two findings"),
    ],
)
def test_a_file_that_is_not_valid_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        result_of([(1, 1, 1, 0)], label_spec=tmp_path / "spec.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alias": ["Effusion"]}, "--alias: 'Effusion' has no two names; write it as NAME=NAME"),
        ({"alias": ["Effusion=Fluid"]}, "labels.csv: --alias Effusion=Fluid: no such finding; the findings are"),
        ({"alias": ["Lung Opacity=Pneumonia"]}, "has both Lung Opacity and Pneumonia, which --alias makes one"),
        ({"implies": ["Pneumona=Lung Opacity"]}, "no finding Pneumona; did you mean 'Pneumonia'"),
        ({"implies": ["Pneumonia=Opacity"]}, "--implies Pneumonia=Opacity: no finding Opacity"),
        ({"labeler": "chexpert"}, "--labeler: 'chexpert' is not valid; .*use chexpert-labeler, chexbert, negbio"),
        ({"label_spec": Path("nowhere.yaml")}, r"nowhere\.yaml: no such file; check the path"),
    ],
)
def test_options_that_do_not_fit_are_one_line(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    rows = {"uid": ["a"], "patient_id": ["1"], "split": "train", "view": "PA", **{name: [0] for name in FINDINGS}}
    pd.DataFrame(rows).to_csv(tmp_path / "labels.csv", index=False)
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match=message) as error:
        read_layout("csv", tmp_path / "labels.csv", {"findings": "all", "all_zero": "keep"} | options)
    assert "\n" not in str(error.value)


def test_the_command_prints_what_it_took_for_what(tmp_path: Path) -> None:
    labels = list(product([1, None], [1, -1, 0, None]))
    rows = {"uid": [f"u{i}" for i in range(8)], "patient_id": range(8), "split": "train", "view": "PA"}
    table = pd.DataFrame(rows | {"Pneumonia": [b for _, b in labels], "No Finding": [a for a, _ in labels]})
    table = table[~((table["No Finding"] == 1) & table["Pneumonia"].isin([1, -1]))].assign(Opacity=None)
    table.to_csv(tmp_path / "t.csv", index=False)
    for uid in table["uid"]:
        (tmp_path / f"{uid}.png").touch()
    command = ["manifest", "csv", str(tmp_path / "t.csv"), str(tmp_path / "m.parquet"), "--findings",
               "Pneumonia,No Finding,Opacity", "--all-zero", "keep"]  # fmt: skip
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert "--labeler chexpert-labeler" in refused.stderr
    more = ["--labeler", "chexpert-labeler", "--implies", "Pneumonia=Lung Opacity", "--alias", "Lung Opacity=Opacity"]
    done = CliRunner().invoke(app, [*command, *more, "--json"])
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["labels"]["changed"] == {
        "blank": {"Pneumonia": 2, "No Finding": 4, "Lung Opacity": 6},
        "-1": {"Pneumonia": 1},
        "Pneumonia=Lung Opacity": {"Lung Opacity": 1},
    }
    assert summary["findings"]["Pneumonia"] == {"positive": 1, "negative": 4, "unknown": 1}
    assert Manifest.read(tmp_path / "m.parquet").findings == ("Pneumonia", "No Finding", "Lung Opacity")
    shown = " ".join(CliRunner().invoke(app, [*command, *more]).stdout.split())
    assert "labels: t.csv, by chexpert-labeler; a blank means negative, -1 means unknown, No Finding means" in shown
    assert "labels changed by rule: blank 12, -1 1, Pneumonia=Lung Opacity 1" in shown


VIEWS = ["PA", "AP", "LATERAL", "LL", None, "ap ", "AP LLD", ""]


@pytest.mark.parametrize(
    ("view", "kept"),
    [
        (None, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("frontal", [0, 1, 5]),
        ("frontal,unknown", [0, 1, 4, 5, 7]),
        ("PA", [0]),
        ("pa, ap lld", [0, 6]),
        ("lateral", [2, 3]),
        ("unknown", [4, 7]),
    ],
)
def test_views_are_chosen_by_projection_or_name(tmp_path: Path, view: str | None, kept: list[int]) -> None:
    rows = {"uid": [f"u{i}" for i in range(8)], "patient_id": range(8), "split": "train", "view": VIEWS, "Mass": 1}
    rows["path"] = [f"{uid}.png" for uid in rows["uid"]]
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    for i in range(6):
        (tmp_path / f"u{i}.png").touch()
    result = read_layout("csv", tmp_path / "t.csv", {"findings": "Mass", "view": view, "missing": "keep"})
    assert list(result.manifest.rows.index) == [f"u{i}" for i in kept]
    assert result.failures == len({6, 7} & set(kept))  # an image that is not wanted is no failure
    if view == "frontal":
        left = "left out: 2 unknown, 1 LATERAL, 1 LL, 1 AP LLD; --view frontal,unknown keeps unknown views"
        assert f"view frontal: 3 of 8 images; {left}" in result.notes
    if view is None:
        assert (
            "2 of 8 images are lateral, 2 of unknown view; `medlt manifest ... --view frontal` leaves both out"
            in result.notes
        )


def test_a_view_that_no_image_has_is_refused(tmp_path: Path) -> None:
    rows = {"uid": ["u0", "u1"], "patient_id": [0, 1], "split": "train", "view": ["LATERAL", None], "Mass": 1}
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    for wanted, close in (("frontal", ";"), ("laterals", "; did you mean 'LATERAL'?")):
        message = f"t.csv: no image of view {wanted}{re.escape(close)} the images are 1 LATERAL, 1 unknown$"
        with pytest.raises(InputError, match=message):
            read_layout("csv", tmp_path / "t.csv", {"findings": "Mass", "view": wanted})
