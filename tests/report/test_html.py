"""The report: every number it shows is one of the tables', and nothing in it reaches out or breaks out."""

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medlt.report import html
from medlt.report.formatting import SCRIPT, beside_limit, gain, interval, number, signed
from medlt.report.html import write_report
from medlt.types import InputError

Read = Callable[..., Any]


def test_scores_shown_are_mean_and_sd_over_seeds(evaluated: Path, known: SimpleNamespace, page_of: Read) -> None:
    table = pd.read_parquet(evaluated / "scores.parquet")
    shown = {row[0]: row for row in page_of(evaluated).rows["findings"][2:]}
    assert list(shown) == ["macro", "tail", *(name.replace("_", " ") for name in known.findings)]
    for name in ("macro", "tail", *known.findings):
        cells = iter(shown[name.replace("_", " ")][4:])
        for metric in ("AP", "AUROC"):
            for arm in known.arms:
                chosen = (table["finding"] == name) & (table["metric"] == metric) & (table["arm"] == arm)
                values = table.loc[chosen, "value"].to_numpy()
                expected = f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" if np.isfinite(values).all() else "–"
                assert next(cells) == expected


def test_label_counts_shown_are_the_manifests(evaluated: Path, known: SimpleNamespace, page_of: Read) -> None:
    page = page_of(evaluated)
    shown = {row[0]: row[1:4] for row in page.rows["findings"][2:]}
    assert shown["Effusion"] == ["60", "1", "30"]  # of the soft labels 0.9, 0.1 and unknown only the first counts
    assert shown["Pneumothorax"] == ["5", "8", "2"]
    assert shown[known.hostile] == ["3", "6", "1"]
    assert "60 → 61" in page.text("labels")
    assert "5 → 13" in page.text("labels")


def test_comparisons_shown_are_the_tables(evaluated: Path, page_of: Read) -> None:
    table, text = pd.read_parquet(evaluated / "comparisons.parquet"), page_of(evaluated).text("comparisons")
    shown = re.findall(r"([+−]\d\.\d{3}) \[([+−]\d\.\d{3}), ([+−]\d\.\d{3})\]", text)
    expected = {tuple(signed(row[k]) for k in ("difference", "low", "high")) for _, row in table.iterrows()}
    assert set(shown) == expected
    assert len(shown) == len(table)


def test_the_verdict_tells_word_interval_control_test_set_and_seeds(evaluated: Path, page_of: Read) -> None:
    text = page_of(evaluated).text("verdict")
    table = pd.read_parquet(evaluated / "comparisons.parquet")
    row = table[(table["control"] == "duplicated") & (table["metric"] == "AP") & (table["finding"] == "macro")].iloc[0]
    assert text.startswith("No evidence")
    assert f"{signed(row['difference'])}, interval [{signed(row['low'])}, {signed(row['high'])}]" in text
    for told in (
        "The interval decides",
        "real images duplicated",
        "60 images of 30 simulated patients",
        "3 training seeds",
    ):
        assert told in text


def test_the_verdict_follows_the_comparison_its_file_names(evaluated: Path, page_of: Read) -> None:
    verdict = json.loads((evaluated / "verdict.json").read_text())
    verdict["comparison"] |= {"finding": "tail", "metric": "AUROC", "control": "real"}
    (evaluated / "verdict.json").write_text(json.dumps(verdict))
    assert "fusion − real, tail AUROC" in page_of(evaluated).text("verdict")


def test_reject_counts_by_check_and_reason(augmented: Path, page_of: Read) -> None:
    page = page_of(augmented)
    assert "6 of 20 checked images failed" in page.text("rejections")
    assert ["duplicate", "a copy of …", "1", "20"] in page.rows["rejections"]
    assert ["label consistency", "the verifier gives Pneumothorax … below …", "5", "20"] in page.rows["rejections"]
    assert ["s0019", "Pneumothorax", "duplicate", "0.999", "0.995", "a copy of r0000"] in page.rows["rejections"]
    assert ["r9999", "not a DICOM file, and not a PNG"] in page.rows["rejections"]


def test_code_metrics_shown_is_the_table(augmented: Path, page_of: Read) -> None:
    rows = {row[0]: row[1:6] for row in page_of(augmented).rows["code"]}
    assert rows["measure"] == ["0", "1", "2 collapsed", "3", "4 used"]
    assert rows["mean max probability"] == ["0.520", "0.710", "0.830", "0.880", "0.910"]
    assert rows["teacher–student agreement"] == ["–", "0.410", "0.580", "0.660", "0.710"]


def test_hostile_names_are_text_not_markup(evaluated: Path, known: SimpleNamespace, page_of: Read) -> None:
    page = page_of(evaluated)
    assert [tag for tag, _ in page.elements].count("script") == 1  # our own
    assert known.hostile in page.text("verdict")
    assert "<b>out</b> & https://example.org" in page.text("provenance")


def test_nothing_is_loaded_from_elsewhere_and_only_our_script_runs(evaluated: Path, page_of: Read) -> None:
    page, text = page_of(evaluated), (evaluated / "report.html").read_text()
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object")
        assert str(attributes.get("src", "data:image/png;base64,")).startswith("data:image/png;base64,")
        assert str(attributes.get("href", "#")).startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    style = text.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    own = text.split("<script>")[1].split("</script>")[0]
    assert own == "\n".join((Path(html.__file__).parent / "script" / f"{name}.js").read_text() for name in SCRIPT)
    policy = next(str(a["content"]) for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy


def test_no_patient_path_time_or_memory_is_told(evaluated: Path, known: SimpleNamespace) -> None:
    write_report(evaluated)
    for file in ("report.html", "report.json"):
        text = (evaluated / file).read_text()
        for secret in (known.secret, "/private/", "123.456", "1987.6", "peak_rss"):
            assert secret not in text


def test_equal_content_gives_equal_bytes_and_times_do_not_matter(evaluated: Path, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(evaluated, other)
    told = json.loads((other / "run.json").read_text()) | {"seconds": {"codec": 1.0}, "peak_rss_mb": 1.0}
    (other / "run.json").write_text(json.dumps(told))
    first, second, again = (
        write_report(evaluated).read_bytes(),
        write_report(other).read_bytes(),
        write_report(evaluated).read_bytes(),
    )
    assert first == second == again
    assert (evaluated / "report.json").read_bytes() == (other / "report.json").read_bytes()
    assert not list(evaluated.glob(".*"))


def test_a_changed_number_changes_the_report(evaluated: Path) -> None:
    before = write_report(evaluated).read_bytes()
    table = pd.read_parquet(evaluated / "comparisons.parquet")
    table.assign(low=table["low"] - 0.1).to_parquet(evaluated / "comparisons.parquet")
    assert write_report(evaluated).read_bytes() != before


def test_a_run_without_evaluation_says_so(augmented: Path, page_of: Read) -> None:
    page = page_of(augmented)
    for section in ("verdict", "comparisons", "findings"):
        assert "Not run yet" in page.text(section)
    assert "No verdict" in page.text("verdict")
    assert "Not run yet" not in page.text("rejections")


def test_a_bare_run_renders_every_section_as_not_run(bare: Path, page_of: Read) -> None:
    page = page_of(bare)
    for section in ("verdict", "comparisons", "findings", "labels", "rejections", "code"):
        assert "Not run yet" in page.text(section)
    assert "Not a medical device" in page.text("limits")


@pytest.mark.parametrize(
    "absent", ["plan", "manifest", "panels", "sparse_code_metrics", "scores", "comparisons", "checks"]
)
def test_any_one_table_may_be_missing(evaluated: Path, absent: str, page_of: Read) -> None:
    (evaluated / f"{absent}.parquet").unlink()
    assert page_of(evaluated).text("limits")


def test_no_rejections_and_one_seed_and_no_failures(evaluated: Path, page_of: Read) -> None:
    checks = pd.read_parquet(evaluated / "checks.parquet")
    checks[checks["passed"]].to_parquet(evaluated / "checks.parquet")
    scores = pd.read_parquet(evaluated / "scores.parquet")
    scores[scores["seed"] == 0].to_parquet(evaluated / "scores.parquet")
    (evaluated / "failures.csv").write_text("")
    page = page_of(evaluated)
    assert "0 of 20 checked images failed" in page.text("rejections")
    assert "Only 1 training seed per arm" in page.text("verdict")
    assert "±" not in "".join("".join(row) for row in page.rows["findings"])


def test_nothing_is_claimed_of_a_run_that_cannot_be_walked_and_no_epsilon_is_repeated(
    augmented: Path, page_of: Read
) -> None:
    line = "No privacy is claimed for this run"
    assert line in page_of(augmented).text("privacy")
    (augmented / "ledger.json").write_text(json.dumps({"epsilon": 8.0, "delta": 1e-5, "unit": "patient"}))
    text = page_of(augmented).text("privacy")
    assert line in text
    assert "8.0" not in text


def test_what_an_audit_found_is_on_the_page(augmented: Path, page_of: Read) -> None:
    assert "Not audited" in page_of(augmented).text("privacy")
    told = {
        "conclusion": "Leaks were found (copies).",
        "results": [{"name": "near_copies", "sentence": "5 of 9 <are> copies"}],
    }
    (augmented / "audit.json").write_text(json.dumps(told))
    text = page_of(augmented).text("privacy")
    assert "Leaks were found (copies)." in text
    assert "5 of 9 <are> copies" in text


def test_json_twin_holds_the_same_numbers(evaluated: Path, known: SimpleNamespace) -> None:
    write_report(evaluated)
    twin = json.loads((evaluated / "report.json").read_text())
    table = pd.read_parquet(evaluated / "comparisons.parquet")
    assert pd.DataFrame(twin["comparisons"])[list(table)].equals(table)
    assert twin["verdict"]["verdict"] == "no evidence"
    assert twin["rejections"]["images"] == 6
    assert [row["finding"] for row in twin["label_counts"]] == list(known.findings)
    missing = [row for row in twin["scores"] if row["finding"] == "Nodule" and row["metric"] == "AP"]
    assert [row["mean"] for row in missing] == [None] * 3


@pytest.mark.parametrize("make", ["absent", "empty", "file"])
def test_a_folder_that_is_no_run_is_one_clear_line(tmp_path: Path, make: str) -> None:
    run = tmp_path / "run"
    if make == "empty":
        run.mkdir()
    if make == "file":
        run.write_text("x")
    with pytest.raises(InputError, match="give the folder of a run") as told:
        write_report(run)
    assert "\n" not in str(told.value)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("name", ["run.json", "verdict.json", "checks.parquet", "scores.parquet", "panels/s0000.png"])
def test_a_broken_file_is_named_and_the_old_report_stays(evaluated: Path, name: str) -> None:
    before = write_report(evaluated).read_bytes()
    (evaluated / name).write_bytes(b"{broken")
    with pytest.raises(InputError, match=Path(name).name) as told:
        write_report(evaluated)
    assert "\n" not in str(told.value)
    assert (evaluated / "report.html").read_bytes() == before


def test_a_table_without_a_column_is_named(evaluated: Path) -> None:
    pd.read_parquet(evaluated / "scores.parquet").drop(columns="arm").to_parquet(evaluated / "scores.parquet")
    with pytest.raises(InputError, match=r"scores.parquet: has no column 'arm'"):
        write_report(evaluated)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "+0.123"), (-0.5, "−0.500"), (-0.0001, "−0.000"), (0.0, "0.000"), (float("nan"), "–")],
)
def test_signed_keeps_the_side_of_zero(value: float, text: str) -> None:
    assert signed(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (np.int64(3), "3"), (0.5, "0.500"), (np.nan, "–"), (None, "–"), ("cpu", "cpu")]
)
def test_number(value: object, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"difference": 0.5, "low": 0.25, "high": 1.0}, "+0.500 [+0.250, +1.000]"),
        ({"difference": 0.5, "low": np.nan, "high": np.nan}, "+0.500, no interval"),
        ({"difference": np.nan, "low": np.nan, "high": np.nan}, "–"),
    ],
)
def test_a_difference_without_an_interval_says_so(row: dict[str, float], text: str) -> None:
    assert interval(row) == text


def test_a_gain_that_no_metric_can_reach_is_no_number() -> None:
    assert [gain(value) for value in (0.25, 1.0, 1.058, None)] == ["0.250", "1.000", "over 1", "–"]


@pytest.mark.parametrize(
    ("value", "limit", "text"),
    [
        (0.3191, 0.19323, ("0.319", "0.193")),
        (0.9992, 0.9995, ("0.9992", "0.9995")),
        (0.99949, 0.9995, ("0.99949", "0.99950")),
        (0.5, 0.5, ("0.500", "0.500")),
        (0.0, 0.0, ("0", "0")),
        (2.0, 1.0, ("2", "1")),
        (np.nan, np.nan, ("–", "–")),
        (np.nan, 0.25, ("–", "0.250")),
    ],
)
def test_a_value_has_the_digits_that_show_its_side_of_the_limit(
    value: float, limit: float, text: tuple[str, str]
) -> None:
    assert beside_limit(value, limit) == text


def test_every_method_shows_its_own_deciding_pair_first(compared: Path, method: str, page_of: Read) -> None:
    page = page_of(compared)
    table = pd.read_parquet(compared / "comparisons.parquet")
    asked = table[(table["arm"] == method) & (table["control"] == "duplicated") & (table["metric"] == "AP")]
    row = asked.set_index("finding").loc["tail"]
    shown = f"{method} − duplicated, tail AP: {signed(row['difference'])}"
    assert shown in page.text("verdict")
    titles = re.findall(r"AP: (\S+) − (\S+)", page.text("comparisons"))
    assert titles[0] == (method, "duplicated")
    heads = [dict(a) for tag, a in page.elements if tag == "th" and "arm" in str(a.get("class", "")).split()]
    assert [head["class"] for head in heads[:3]] == ["n arm real", "n arm control", "n arm synthetic"]


def test_a_run_tells_subgroups_calibration_and_later_evaluations_as_an_experiment_does(
    compared: Path, method: str, page_of: Read
) -> None:
    page = page_of(compared)
    assert [row[0] for row in page.rows["reliability"][1:]] == ["real", "duplicated", method.replace("_", " ")]
    assert len(page.rows["subgroups"]) == 2 + 8
    assert "of the test set in this folder" not in page.text("verdict")
    told = json.loads((compared / "verdict.json").read_text()) | {"test_set_evaluations": 4}
    (compared / "verdict.json").write_text(json.dumps(told))
    assert "Evaluation 4 of the test set in this folder" in page_of(compared).text("verdict")
    twin = json.loads((compared / "report.json").read_text())
    assert [row["role"] for row in twin["arms"]] == ["real", "synthetic", "control"]
    assert len(twin["subgroups"]) == len(pd.read_parquet(compared / "subgroups.parquet"))
    for name in ("subgroups", "reliability", "arms"):
        (compared / f"{name}.parquet").unlink()
        assert page_of(compared).text("limits")


@pytest.mark.parametrize("kind", ["fusion", "edit", "noise", "minority", "longtail"])
@pytest.mark.parametrize("private", [False, True])
def test_the_limits_name_a_verifier_only_where_one_checked_the_labels(
    augmented: Path, page_of: Read, kind: str, private: bool
) -> None:
    section = "privacy: {epsilon: 8, delta: 1.0e-6, patients: 360, findings: [Mass]}\n" if private else ""
    (augmented / "config.yaml").write_text(f"method: {{kind: {kind}}}\ndata: {{kind: phantom}}\n{section}")
    text = page_of(augmented).text("limits")
    verified = not private or kind in ("fusion", "edit")
    assert ("A verifier trained without their parents checks them" in text) == verified
    assert ("No verifier checks it" in text) != verified
    assert "No radiologist has read the images" in text
