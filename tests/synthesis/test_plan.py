"""The plan: all random numbers in one table, the right partners, the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from medlt.synthesis.fusion import LatentFusion
from medlt.synthesis.plan import COLUMNS, PlanSettings, TrainTable
from medlt.types import InputError

Build = Callable[..., LatentFusion]
NEED = {"Hernia": 13, "Pleural Other": 4}


def test_same_seed_same_plan_other_seed_other_plan(build: Build) -> None:
    first, again, other = build().plan(NEED, 7), build().plan(NEED, 7), build().plan(NEED, 8)
    pd.testing.assert_frame_equal(first, again)
    assert not first["head_parent"].tolist() == other["head_parent"].tolist()
    assert not set(first.index) & set(other.index)


def test_the_plan_does_not_depend_on_the_order_of_rows(build: Build) -> None:
    method = build()
    rows = method.train
    shuffled = TrainTable(rows.table.sample(frac=1, random_state=1), rows.findings, rows.tail)
    pd.testing.assert_frame_equal(method.plan(NEED, 7), build(train=shuffled).plan(NEED, 7))


def test_a_longer_plan_begins_with_the_shorter(build: Build) -> None:
    short, long = build().plan({"Hernia": 3}, 7), build().plan({"Hernia": 11}, 7)
    pd.testing.assert_frame_equal(short, long.iloc[: len(short)])


@pytest.mark.parametrize("metric", ["saliency", "confusing"])
def test_partners_same_fold_other_patient_no_tail_finding(build: Build, metric: str) -> None:
    method = build(plan_settings=PlanSettings(metric=metric, num_candidates=3))
    rows, table = method.plan(NEED, 7), method.train.table
    assert rows.index.is_unique
    assert list(rows.columns) == list(COLUMNS)
    for _, row in rows.iterrows():
        a, b = table.loc[row["tail_parent"]], table.loc[row["head_parent"]]
        assert a["patient_id"] != b["patient_id"]
        assert a["fold"] == b["fold"] == row["fold"]
        assert a[row["finding"]] == 1
        assert not b[list(method.train.tail)].any()
        assert row["parents"] == [row["tail_parent"], row["head_parent"]]
        assert row["head_finding"] == "" or b[row["head_finding"]] == 1
        assert 0 <= row["tail_probability"] <= 1


def test_a_lateral_radiograph_fills_no_frontal_tail(build: Build) -> None:
    rows = build().train
    views = dict(zip(rows.table.index, ["PA", "LATERAL", None, "AP", "PA"] * 12, strict=True))
    table = rows.table.assign(view=rows.table.index.map(views))
    train = TrainTable(table, rows.findings, rows.tail)
    made = build(train=train).plan(NEED, 7)
    groups = {"PA": "frontal", "AP": "frontal"}
    shown = [
        made[parent].map(lambda uid: groups.get(views[uid], str(views[uid])))
        for parent in ("tail_parent", "head_parent")
    ]
    assert shown[0].tolist() == shown[1].tolist()
    assert set(shown[0]) == {"frontal", "None"}
    assert any(views[uid] == "LATERAL" for uid in train.positive("Hernia"))
    assert set(train.parents("Hernia")) == {uid for uid in train.positive("Hernia") if views[uid] != "LATERAL"}

    lateral = table.assign(view="LATERAL")
    every = TrainTable(lateral, rows.findings, rows.tail)
    assert every.parents("Hernia") == every.positive("Hernia")
    blank = TrainTable(table.assign(view=None), rows.findings, rows.tail)
    assert blank.parents("Hernia") == rows.parents("Hernia") == rows.positive("Hernia")
    lonely = table.assign(view=[*table["view"].where(table["Hernia"] == 0, "LLO")])
    with pytest.raises(InputError, match="no image with Hernia has a partner in its fold and projection"):
        build(train=TrainTable(lonely, rows.findings, rows.tail)).plan({"Hernia": 1}, 7)


def test_every_slot_has_its_candidates_from_one_tail_image(build: Build) -> None:
    rows = build(plan_settings=PlanSettings(num_candidates=3)).plan(NEED, 7)
    slots = rows.groupby(["finding", "slot"])
    assert {name: len(group) for name, group in rows.groupby("finding")} == {k: 3 * v for k, v in NEED.items()}
    assert (slots["candidate"].apply(list).map(lambda numbers: numbers == [0, 1, 2])).all()
    assert (slots["tail_parent"].nunique() == 1).all()
    assert (slots["seed"].nunique() == 3).all()


def test_tail_images_take_turns(build: Build) -> None:
    method = build()
    rows = method.plan({"Hernia": 25}, 7).query("candidate == 0")
    used = rows["tail_parent"].value_counts()
    assert set(used.index) == set(method.train.positive("Hernia"))
    assert used.max() - used.min() <= 1


def test_a_tail_image_repeats_no_partner_before_all_were_used(build: Build) -> None:
    method = build(plan_settings=PlanSettings(neighbours=4, num_candidates=2))
    rows = method.plan({"Hernia": 60}, 7)
    for _, own in rows.groupby("tail_parent"):
        used = own["head_parent"].tolist()
        near = min(4, len(set(used)))
        turns = [used[i : i + near] for i in range(0, len(used) - near + 1, near)]
        assert all(len(set(turn)) == near for turn in turns)
        assert len(set(map(tuple, turns))) == 1
    few, many = (build(plan_settings=PlanSettings(neighbours=k)).plan({"Hernia": 60}, 7) for k in (1, 12))
    assert many["head_parent"].nunique() >= rows["head_parent"].nunique() > few["head_parent"].nunique()


def test_areas_are_normal_about_their_mean(build: Build) -> None:
    areas = build(plan_settings=PlanSettings(area_mean=0.3, area_sd=0.04)).plan({"Hernia": 400}, 7)["tail_area"]
    assert areas.mean() == pytest.approx(0.3, abs=4 * 0.04 / 20)
    assert areas.std() == pytest.approx(0.04, rel=0.15)


def test_thresholds_are_normal_about_their_mean(build: Build) -> None:
    rows = build(plan_settings=PlanSettings(threshold_mean=0.4, threshold_sd=0.05)).plan({"Hernia": 400}, 7)
    for name in ("tail_threshold", "head_threshold"):
        assert rows[name].mean() == pytest.approx(0.4, abs=4 * 0.05 / 20)
        assert rows[name].std() == pytest.approx(0.05, rel=0.15)
    assert abs(np.corrcoef(rows["tail_threshold"], rows["head_threshold"])[0, 1]) < 0.2
    wide = build(plan_settings=PlanSettings(threshold_sd=5.0)).plan({"Hernia": 20}, 7)
    assert wide[["tail_threshold", "head_threshold"]].stack().between(0, 1).all()


def test_saliency_partners_are_among_the_k_nearest_maps(build: Build) -> None:
    method = build(plan_settings=PlanSettings(neighbours=1))
    rows, table, explainer = method.plan({"Hernia": 5}, 7), method.train.table, method.explainer
    names = method.train.findings
    for _, row in rows.iterrows():
        own = explainer.maps_of([row["tail_parent"]], np.array([names.index("Hernia")]))[0]
        fit = table[
            (table["fold"] == row["fold"]) & (table["patient_id"] != table.at[row["tail_parent"], "patient_id"])
        ]
        fit = fit[(fit[list(method.train.tail)] == 0).all(axis=1)]
        scores = explainer.scores_of(list(fit.index))
        far = []
        for uid, score in zip(fit.index, scores, strict=True):
            has = [k for k, name in enumerate(names) if table.at[uid, name] == 1]
            ill = [k for k in has if names[k] != "No Finding"] or has
            best = max(ill, key=lambda k: score[k]) if ill else -1
            far.append(np.linalg.norm(own - explainer.maps_of([uid], np.array([best]))[0]))
        assert row["head_parent"] == fit.index[int(np.argmin(far))]


def test_confusing_partners_have_the_most_confused_head_finding(build: Build) -> None:
    method = build(plan_settings=PlanSettings(metric="confusing"))
    scores = method.explainer.scores_of(method.train.positive("Hernia")).mean(0)
    head = max(("Effusion", "Mass"), key=lambda name: scores[method.train.findings.index(name)])
    assert set(method.plan({"Hernia": 10}, 7)["head_finding"]) == {head}


def test_bad_targets_are_refused(build: Build) -> None:
    method = build()
    with pytest.raises(InputError, match="'Mass' is not a tail finding"):
        method.plan({"Mass": 1}, 0)
    table = method.train.table.assign(Hernia=0.0)
    with pytest.raises(InputError, match="Hernia has no positive train row"):
        build(train=TrainTable(table, method.train.findings, method.train.tail)).plan({"Hernia": 1}, 0)
    table = method.train.table.assign(**{"Pleural Other": 1.0})
    with pytest.raises(InputError, match="no train row is known to have no tail finding"):
        build(train=TrainTable(table, method.train.findings, method.train.tail)).plan({"Hernia": 1}, 0)
    table = method.train.table.assign(fold=range(60))
    with pytest.raises(InputError, match="has a partner in its fold and projection; lower checks"):
        build(train=TrainTable(table, method.train.findings, method.train.tail)).plan({"Hernia": 1}, 0)
    with pytest.raises(InputError, match="choose one of saliency, confusing"):
        PlanSettings(metric="nearest")


def test_bad_tables_are_refused(build: Build) -> None:
    rows = build().train
    with pytest.raises(InputError, match="no column 'fold'"):
        TrainTable(rows.table.drop(columns="fold"), rows.findings, rows.tail)
    with pytest.raises(InputError, match="'Hernai' is not a finding"):
        TrainTable(rows.table, rows.findings, ("Hernai",))
    with pytest.raises(InputError, match="occurs twice"):
        TrainTable(pd.concat([rows.table, rows.table.iloc[:1]]), rows.findings, rows.tail)


def test_no_targets_are_an_empty_plan(build: Build) -> None:
    method = build()
    rows = method.plan({}, 0)
    assert rows.empty
    assert list(method.run(rows)) == []
