"""The page of an experiment: its numbers are the tables', what is absent is left out, and nothing breaks out of it."""

import json
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from medlt.report.collect import collect
from medlt.report.formatting import interval, number, p_value, signed
from medlt.report.heading import MEANINGS
from medlt.report.html import write_report
from medlt.report.verdict import without_places
from medlt.types import InputError

Read = Callable[..., Any]
OPTIONAL = (
    "subgroups",
    "reliability",
    "agreement",
    "confusion",
    "filter_effect",
    "rejections",
    "comparisons",
    "scores",
)


def display_name(name: str) -> str:
    """A name as the page shows it."""
    return name.replace("_", " ")


def mean_sd(table: pd.DataFrame, arm: str, finding: str, metric: str) -> str:
    """By the slow path: mean ± sd over the seeds."""
    selected = (table["arm"] == arm) & (table["finding"] == finding) & (table["metric"] == metric)
    values = table.loc[selected, "value"].to_numpy()
    if not len(values) or np.isnan(values).any():
        return "–"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def difference(
    table: pd.DataFrame, arm: str, control: str, finding: str = "tail", metric: str = "AP"
) -> dict[str, Any]:
    selected = (table["arm"] == arm) & (table["control"] == control)
    return table[selected & (table["finding"] == finding) & (table["metric"] == metric)].iloc[0].to_dict()


def test_the_verdict_is_on_top_in_words_with_its_numbers(experiment: Path, page_of: Read) -> None:
    verdict, text = json.loads((experiment / "verdict.json").read_text()), page_of(experiment).text("verdict")
    assert text.startswith(MEANINGS[verdict["verdict"]])
    assert verdict["sentence"] in text
    one = verdict["comparison"]
    assert f"fusion_one − copies_one, tail macro AP: {signed(one['difference'])}" in text
    assert f"[{signed(one['low'])}, {signed(one['high'])}]" in text
    assert "crt (also chosen on validation): +0.012, interval [−0.046, +0.070]" in text
    assert "chosen among 2 arms with synthetic images by validation tail macro AP" in text
    assert "Smallest detectable gain: 0.043" in text
    for count in ("3seeds per arm", "345real test images", "123test patients", "6arms"):
        assert count in text
    intervals = pd.read_parquet(experiment / "comparisons.parquet")["low"].notna().sum()
    assert f"holds {intervals} intervals" in text


def test_every_arm_is_in_the_table_in_its_order_with_its_numbers(experiment: Path, page_of: Read) -> None:
    arms, scores = pd.read_parquet(experiment / "arms.parquet"), pd.read_parquet(experiment / "scores.parquet")
    comparisons = pd.read_parquet(experiment / "comparisons.parquet")
    shown = page_of(experiment).rows["arms"][2 : 2 + len(arms)]
    for row, arm in zip(shown, arms.to_dict("records"), strict=True):
        name = arm["arm"]
        assert row[0] == display_name(name) + (" primary" if name == "fusion_one" else "")
        assert row[1] == arm["role"]
        assert row[2] == ("18 of 20" if arm["added"] == 18 else str(arm["added"]))
        assert row[3] == f"{arm['val_tail_ap']:.3f} ± 0.011"
        assert row[4:8] == [mean_sd(scores, name, group, "AP") for group in ("tail", "medium", "head", "macro")]
        for cell, metric in zip(row[8:12], ("AUROC", "balanced accuracy", "F1", "ECE"), strict=True):
            assert cell == mean_sd(scores, name, "macro", metric).split(" ± ")[0]
        against = difference(comparisons, name, arm["control"]) if arm["control"] else None
        assert row[12] == interval(against)
        assert row[13] == (against["verdict"] if against else "–")


def test_both_forest_plots_hold_every_arm_by_role(experiment: Path, page_of: Read, known: SimpleNamespace) -> None:
    table, text = pd.read_parquet(experiment / "comparisons.parquet"), page_of(experiment).text("comparisons")
    own, to_real = text.split("arm − real", 1)
    controls = pd.read_parquet(experiment / "arms.parquet").set_index("arm")["control"]
    order = [known.hostile, "fusion_one", "copies_half", "copies_one", "crt"]
    for part, pairs in ((own, controls), (to_real, dict.fromkeys(order, "real"))):
        shown = re.findall(r"[+−]\d\.\d{3} \[[+−]\d\.\d{3}, [+−]\d\.\d{3}\]", part)
        assert shown == [interval(difference(table, arm, pairs[arm])) for arm in order]
    assert own.index("synthetic, each against its duplicated") < own.index("control, against real")


def test_the_primary_arm_alone_is_a_diamond_among_arms(experiment: Path) -> None:
    part = write_report(experiment).read_text().split('<section id="comparisons"')[1].split("</section>")[0]
    assert [unescape(name) for name in re.findall(r'<g class="[\w-]+ group">\s*<text[^>]*>([^<]*)', part)] == [
        "fusion one"
    ] * 2


def test_findings_show_scores_p_and_the_reason_for_what_is_missing(
    experiment: Path, page_of: Read, known: SimpleNamespace
) -> None:
    table, scores = (pd.read_parquet(experiment / f"{name}.parquet") for name in ("comparisons", "scores"))
    rows = {row[0]: row for row in page_of(experiment).rows["findings"][2:]}
    assert list(rows) == ["macro", "head", "tail", *known.sought]
    for name in ("macro", "tail", "Effusion", "Nodule"):
        row, test = rows[name], difference(table, "fusion_one", "copies_one", name)
        assert row[1:3] == [mean_sd(scores, arm, name, "AP") for arm in ("copies_one", "fusion_one")]
        assert row[3:7] == [interval(test), p_value(test["p"]), p_value(test["p_holm"]), test["verdict"]]
        assert row[7] == mean_sd(scores, "copies_one", name, "AUROC").split(" ± ")[0]
    assert rows["Hernia"][1:4] == ["–", "–", "no test patient has it"]
    assert len(rows["Hernia"]) == len(rows["Nodule"]) - 3


def test_power_shows_the_smallest_gain_of_each_finding(experiment: Path, page_of: Read) -> None:
    table = pd.read_parquet(experiment / "comparisons.parquet")
    rows = page_of(experiment).rows["power"]
    larger = rows.index(["test patients", "seeds", "smallest gain"])
    assert rows[larger + 1 :] == [["123", "3", "0.043"], ["1968", "10", "–"]]
    for name, patients, smallest, _ in rows[1:larger]:
        assert patients == "21"
        assert smallest == number(difference(table, "fusion_one", "copies_one", name)["smallest"])


def test_the_ratio_curve_names_ratio_and_score_of_arm_and_control(experiment: Path, page_of: Read) -> None:
    text, scores = page_of(experiment).text("ratio"), pd.read_parquet(experiment / "scores.parquet")
    for ratio, arm in (("0.5", "copies_half"), ("1", "fusion_one")):
        assert f"{ratio} gives {mean_sd(scores, arm, 'tail', 'AP').split(' ± ')[0]}" in text


def test_arms_of_one_ratio_make_no_curve(experiment: Path, page_of: Read) -> None:
    arms = pd.read_parquet(experiment / "arms.parquet")
    arms.assign(loss=[f"loss {i}" for i in range(len(arms))]).to_parquet(experiment / "arms.parquet")
    assert "ratio" not in page_of(experiment).rows.keys() | page_of(experiment).texts.keys()


def test_subgroups_show_gaps_with_intervals_or_the_reason(experiment: Path, page_of: Read) -> None:
    table, rows = pd.read_parquet(experiment / "subgroups.parquet"), page_of(experiment).rows["subgroups"][2:]
    assert len(rows) == 8
    for row in rows:
        selected = (table["attribute"] == row[0]) & (table["value"] == row[1]) & (table["metric"] == row[4])
        cells = table[selected].set_index("arm").loc[["real", "copies_one", "fusion_one"]]
        for i, cell in enumerate(cells.to_dict("records")):
            score, gap = row[5 + 2 * i : 7 + 2 * i]
            assert score.split(" ")[0] == number(cell["score"])
            if cell["reason"]:
                assert (score, gap) == (number(cell["score"]), f"– {cell['reason']}")
            else:
                assert gap == f"{signed(cell['gap'])} [{signed(cell['gap_low'])}, {signed(cell['gap_high'])}]"


def test_labels_show_filter_effect_confusion_and_rejections(experiment: Path, page_of: Read) -> None:
    page = page_of(experiment)
    rows = page.rows["labels"]
    for row in (["label", "7", "51"], ["duplicate", "2", "51"], ["Effusion", "0.61", "0.11", "0.11"]):
        assert row in rows
    assert ["all", "0.50", "20", "0.430 [0.210, 0.470]", "0.740"] in rows
    assert ["Hernia", "0.07", "0.07", "0.82"] in rows
    assert "0.25 gives 0.600" in page.text("labels")


def test_reliability_shows_the_three_arms_and_their_error(experiment: Path, page_of: Read) -> None:
    scores, page = pd.read_parquet(experiment / "scores.parquet"), page_of(experiment)
    expected = [
        [display_name(arm), mean_sd(scores, arm, "macro", "ECE")] for arm in ("real", "copies_one", "fusion_one")
    ]
    assert page.rows["reliability"][1:] == expected
    table = pd.read_parquet(experiment / "reliability.parquet").query("arm == 'fusion_one' and images > 0")
    shown = page.text("reliability").split("fusion_one:")[1]
    for row in table.itertuples():
        assert f"{row.mean_score:g} gives {row.rate:.3f}" in shown


@pytest.mark.parametrize("absent", [*OPTIONAL, "verdict.json", "run.json"])
def test_any_one_file_may_be_missing(experiment: Path, page_of: Read, absent: str) -> None:
    (experiment / (absent if "." in absent else f"{absent}.parquet")).unlink()
    page = page_of(experiment)
    assert page.text("limits")
    if absent in ("subgroups", "reliability"):
        assert absent not in page.texts
    if absent == "verdict.json":
        assert "No verdict Not run yet" in page.text("verdict")


def test_only_arms_are_enough_for_a_page(experiment: Path, page_of: Read) -> None:
    for name in OPTIONAL:
        (experiment / f"{name}.parquet").unlink()
    (experiment / "verdict.json").unlink()
    page = page_of(experiment)
    assert "No comparison yet" in page.text("comparisons")
    assert set(page.texts) >= {"verdict", "arms", "findings", "power", "limits", "repeat"}
    assert not set(page.texts) & {"ratio", "reliability", "labels", "subgroups"}


def test_without_a_primary_arm_there_is_no_verdict(experiment: Path, page_of: Read) -> None:
    arms = pd.read_parquet(experiment / "arms.parquet")
    arms[arms["role"] != "synthetic"].assign(primary=False).to_parquet(experiment / "arms.parquet")
    verdict = {"verdict": "no verdict", "sentence": "no arm has synthetic images", "comparison": None}
    (experiment / "verdict.json").write_text(json.dumps(verdict))
    page = page_of(experiment)
    assert page.text("verdict").startswith("No verdict no arm has synthetic images")
    assert "No primary arm, or no scores" in page.text("findings")


def test_after_one_seed_no_arm_gets_a_verdict(experiment: Path, page_of: Read) -> None:
    scores = pd.read_parquet(experiment / "scores.parquet")
    scores[scores["seed"] == 0].to_parquet(experiment / "scores.parquet")
    page = page_of(experiment)
    assert {row[13] for row in page.rows["arms"][2:8]} == {"–", "no verdict"}
    assert "verdict-helps" not in (experiment / "report.html").read_text().split("</style>")[1]


def test_a_verdict_that_cannot_see_says_why_and_shows_what_it_rests_on(experiment: Path, page_of: Read) -> None:
    assert "conditions" not in page_of(experiment).texts
    content = {
        "verdict": "cannot see",
        "sentence": "Cannot see: it was still improving.",
        "cannot_see": ["it was still improving; set evaluation.max_steps to 480"],
        "above_random": {"value": 0.3, "random": 0.1, "difference": 0.2, "low": 0.15, "high": 0.25},
        "training_length": {"steps": 240, "limit": 240, "chosen_by": "plateau", "best_steps": [240]},
    }
    verdict = json.loads((experiment / "verdict.json").read_text())
    (experiment / "verdict.json").write_text(json.dumps(verdict | content))
    page = page_of(experiment)
    start = "Cannot see whether the synthetic images help The measured difference decides nothing, because it was still"
    assert page.text("verdict").startswith(start)
    text = page.text("conditions")
    assert "240 steps per arm, the validation plateau of a pilot" in text
    assert "0.300, that of a random order 0.100: difference +0.200 [+0.150, +0.250]" in text
    assert "set evaluation.max_steps to 480" in text
    assert "not measured: no codec" in text
    assert ("section", "cannot-see") in {
        (tag, str(given.get("class")).removeprefix("verdict ")) for tag, given in page.elements
    }


def test_conditions_show_curves_fingerprints_shares_retention_and_sources(experiment: Path, page_of: Read) -> None:
    arms = pd.read_parquet(experiment / "arms.parquet")
    primary = arms[arms["primary"]].iloc[0]
    name, control = str(primary["arm"]), str(primary["control"])
    verdict = json.loads((experiment / "verdict.json").read_text())
    content = {
        "above_random": {"value": 0.3, "random": 0.1, "difference": 0.2, "low": 0.15, "high": 0.25},
        "fingerprints": {name: {"auroc": 0.94, "low": 0.9, "high": 0.97}, control: None},
        "chosen_on_validation": {name: {"tried": [{}, {}, {}]}},
        "confounded": ["Mass goes with the source: 98% of its 190 positives"],
    }
    (experiment / "verdict.json").write_text(json.dumps(verdict | content))
    curves = [
        (arm, seed, step, 0.1 * step + 0.2 * seed) for arm in (name, control) for seed in (0, 1) for step in (1, 2)
    ]
    pd.DataFrame(curves, columns=["arm", "seed", "step", "val_macro_ap"]).to_parquet(
        experiment / "learning_curves.parquet"
    )
    kept = {"source": "fusion", "finding": "Mass", "kept": 0.63, "low": 0.5, "high": 0.8, "images": 40, "patients": 9}
    pd.DataFrame([kept]).to_parquet(experiment / "retention.parquet")
    one = {"finding": "Mass", "column": "source", "positives": 190, "cramers_v": 0.41, "top_value": "one",
           "top_share": 0.98, "top_share_negatives": 0.5, "confounded": True, "auroc": 0.91,
           "within_auroc": 0.66}  # fmt: skip
    other = one | {"finding": "Nodule", "confounded": False}
    pd.DataFrame([{**row, "arm": arm} for row in (one, other) for arm in (name, control)]).to_parquet(
        experiment / "confounding.parquet"
    )
    page = page_of(experiment)
    rows = {row[0]: row[1:] for row in page.rows["conditions"] if row}
    assert rows[name.replace("_", " ")][2:] == ["3", "0.94 [0.90, 0.97]"]
    assert rows[control.replace("_", " ")][3] == "not measured: no codec"
    assert rows["fusion"][:2] == ["Mass", "0.63 [0.50, 0.80]"]
    assert rows["Mass"][:2] == ["source", "0.41"]
    assert rows["Mass"][6].split(", ")[-1] == "0.660"
    assert "Nodule" not in rows
    assert "98% of its 190 positives" in page.text("conditions")
    drawing = re.findall(r"<svg.*?</svg>", (experiment / "report.html").read_text(), re.DOTALL)
    described = [ElementTree.fromstring(text).findtext("desc") or "" for text in drawing]
    (own,) = [text for text in described if text.startswith("step against validation macro AP")]
    assert "1 gives 0.200, 2 gives 0.300" in own  # the mean of two seeds
    assert json.loads((experiment / "report.json").read_text())["retention"] == [kept]


def test_a_later_look_at_the_test_set_is_told(experiment: Path, page_of: Read) -> None:
    verdict = json.loads((experiment / "verdict.json").read_text())
    (experiment / "verdict.json").write_text(json.dumps(verdict | {"test_set_evaluations": 1}))
    assert "of the test set in this folder" not in page_of(experiment).text("verdict")
    assert "tested once" in (experiment / "verdict.svg").read_text()
    (experiment / "verdict.json").write_text(json.dumps(verdict | {"test_set_evaluations": 3}))
    assert "Evaluation 3 of the test set in this folder" in page_of(experiment).text("verdict")
    assert "tested once" not in (experiment / "verdict.svg").read_text()


def test_hostile_names_are_text_not_markup(experiment: Path, page_of: Read, known: SimpleNamespace) -> None:
    page = page_of(experiment)
    assert [tag for tag, _ in page.elements].count("script") == 1  # our own
    for section in ("verdict", "arms", "ratio"):
        assert known.hostile in page.text(section)
    assert known.hostile not in (experiment / "report.html").read_text()


def test_nothing_is_loaded_and_no_patient_place_or_time_is_told(
    experiment: Path, page_of: Read, known: SimpleNamespace
) -> None:
    for tag, attributes in page_of(experiment).elements:
        assert tag not in ("link", "iframe", "object", "img")
        assert str(attributes.get("href", "#")).startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    texts = [(experiment / name).read_text() for name in ("report.html", "report.json", "verdict.svg")]
    for secret in (known.secret, "/private", "123.456"):
        assert not [text for text in texts if secret in text]
    assert sum(map(len, texts)) < 1_000_000


def test_every_drawing_has_a_name_and_a_description(experiment: Path) -> None:
    drawings = re.findall(r"<svg.*?</svg>", write_report(experiment).read_text(), re.DOTALL)
    assert len(drawings) == 8
    for text in drawings:
        root = ElementTree.fromstring(text)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert (root.findtext("desc") or "").strip()


def test_equal_content_gives_equal_bytes(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(experiment, other)
    write_report(experiment), write_report(other)
    for name in ("report.html", "report.json", "verdict.svg"):
        assert (experiment / name).read_bytes() == (other / name).read_bytes()


def test_json_twin_holds_the_same_numbers(experiment: Path) -> None:
    write_report(experiment)
    twin = json.loads((experiment / "report.json").read_text())
    for name in ("comparisons", "subgroups", "confusion"):
        table = pd.read_parquet(experiment / f"{name}.parquet")
        pd.testing.assert_frame_equal(pd.DataFrame(twin[name])[list(table)], table, check_dtype=False)
    assert twin["verdict"]["smallest"] == 0.0432
    assert twin["primary"] == "fusion_one"
    assert len(twin["rejections"]) == 2
    (experiment / "agreement.parquet").unlink()
    write_report(experiment)
    assert json.loads((experiment / "report.json").read_text())["agreement"] is None


def test_counts_are_shown(experiment: Path, page_of: Read) -> None:
    text = page_of(experiment).text("repeat")
    for shown in ("train500", "test345", "arms6"):
        assert shown in text


@pytest.mark.parametrize("column", ["val_tail_ap", "role", "primary"])
def test_an_arm_table_without_a_column_is_named(experiment: Path, column: str) -> None:
    pd.read_parquet(experiment / "arms.parquet").drop(columns=column).to_parquet(experiment / "arms.parquet")
    with pytest.raises(InputError, match=rf"arms.parquet: has no column '{column}'"):
        write_report(experiment)


def test_comparisons_of_an_experiment_need_p_and_power(experiment: Path) -> None:
    table = pd.read_parquet(experiment / "comparisons.parquet").drop(columns="smallest")
    table.to_parquet(experiment / "comparisons.parquet")
    with pytest.raises(InputError, match=r"comparisons.parquet: has no column 'smallest'"):
        write_report(experiment)
    (experiment / "arms.parquet").unlink()
    assert collect(experiment).comparisons is not None


def test_an_arm_named_twice_is_refused(experiment: Path) -> None:
    arms = pd.read_parquet(experiment / "arms.parquet")
    pd.concat([arms, arms.tail(1)]).to_parquet(experiment / "arms.parquet")
    with pytest.raises(InputError, match="names an arm twice"):
        write_report(experiment)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("table: /data/x/list.csv", "table: …/list.csv"),
        ("out: runs/x", "out: runs/x"),
        (r"table: C:\data\x\list.csv", "table: …/list.csv"),
        ("url: https://example.org/a", "url: https://example.org/a"),
        ("'~/secret/a.csv'", "'…/a.csv'"),
        ("window: [0.3, 0.8]", "window: [0.3, 0.8]"),
    ],
)
def test_places_of_this_machine_are_left_out(text: str, left: str) -> None:
    assert without_places(text) == left


def test_patients_of_the_phantom_are_simulated_ones(experiment: Path, page_of: Read) -> None:
    assert "123test patients" in page_of(experiment).text("verdict")
    assert "of 123 patients" in (experiment / "verdict.svg").read_text()
    (experiment / "config.yaml").write_text("data: {kind: phantom}\n")
    assert "123simulated test patients" in page_of(experiment).text("verdict")
    assert "of 123 simulated patients" in (experiment / "verdict.svg").read_text()
