"""Agreement, confusion and filtering against counts by hand, against loops, and for known mixtures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medlt.evaluation.agreement import (
    AGREEMENT,
    CONFUSION,
    FILTER_EFFECT,
    agreement,
    confusion,
    filter_effect,
    mask_unobserved,
)
from medlt.rng import numpy_generator
from medlt.types import InputError

FINDINGS = ("Mass", "Hernia", "Edema")


def table(values: Any, prefix: str) -> pd.DataFrame:
    values = np.asarray(values, dtype=float)
    return pd.DataFrame(values, index=[f"{prefix}{i}" for i in range(len(values))], columns=list(FINDINGS))


def by_hand() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.Series]:
    """Five real rows with Mass at 0.1 to 0.5, three with Hernia at 0.6, no known Edema; six images."""
    held_out = table([[0.1, 0.9, 0], [0.2, 0.1, 0], [0.3, 0.6, 0], [0.4, 0.6, 0], [0.5, 0.6, 0], [0.9, 0.9, 1]], "u")
    labels = table([[1, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 0], [np.nan, np.nan, np.nan]], "u")
    scores = table([[0.3, 0.7, 0], [0.29, 0.1, 0], [0.45, 0.6, 0], [0.5, 0.59, 0], [0, 0.6, 1], [1, 1, 1]], "s")
    made_for = pd.Series(["Mass", "Mass", "Mass", "Hernia", "Hernia", "Edema"], index=scores.index)
    return held_out, labels, scores, made_for


def test_agreement_by_hand() -> None:
    """Limits of Mass: 0.3 (median), 0.4 (third quartile); Hernia ties at 0.6; nothing is known of Edema."""
    found = agreement(*by_hand(), quantiles=(0.5, 0.75))
    assert tuple(found.columns) == AGREEMENT
    assert found["finding"].tolist() == ["Mass", "Hernia", "Edema", "all"] * 2
    shown = found.set_index(["quantile", "finding"])
    assert shown.loc[(0.5, "Mass"), ["limit", "real", "synthetic", "images", "accepted_images"]].tolist() == [
        pytest.approx(0.3), 3 / 5, pytest.approx(2 / 3), 3, 2]  # fmt: skip
    assert shown.loc[(0.75, "Mass"), ["limit", "real", "accepted_images"]].tolist() == [pytest.approx(0.4), 2 / 5, 1]
    for quantile in (0.5, 0.75):
        assert shown.loc[(quantile, "Hernia"), ["limit", "real", "synthetic"]].tolist() == [0.6, 1.0, 0.5]
    edema = shown.loc[(0.5, "Edema")]
    assert edema[["limit", "real", "synthetic", "low", "high"]].isna().all()
    assert edema["images"] == edema["accepted_images"] == 0
    assert edema["reason"] == "no real positive of Edema has a score, so there is no limit"
    assert (shown.drop(index="Edema", level=1)["reason"] == "").all()
    pooled = shown.loc[(0.5, "all")]
    assert (pooled["images"], pooled["accepted_images"]) == (5, 3)
    assert pooled["synthetic"] == pytest.approx(3 / 5)
    assert pooled["real"] == pytest.approx((3 * 0.6 + 2 * 1.0) / 5)


def test_the_interval_is_wilsons() -> None:
    """10 of 20 at 95 %: 0.2993 to 0.7007, as in statsmodels' proportion_confint(10, 20, method='wilson')."""
    held_out, labels = table([[0.5] * 3] * 4, "u"), table([[1] * 3] * 4, "u")
    scores = table([[0.9] * 3] * 10 + [[0.1] * 3] * 10, "s")
    row = agreement(held_out, labels, scores, pd.Series("Mass", index=scores.index), (0.5,)).iloc[0]
    assert row["low"] == pytest.approx(0.2993, abs=5e-5)
    assert row["high"] == pytest.approx(0.7007, abs=5e-5)


def test_confusion_by_hand() -> None:
    found = confusion(*by_hand())
    assert tuple(found.columns) == CONFUSION
    shown = found.set_index(["label", "predicted"])
    assert shown.loc[("Mass", "Mass"), ["share", "real_share", "images"]].tolist() == [pytest.approx(2 / 3), 0.6, 3]
    assert shown.loc[("Mass", "Hernia"), ["share", "real_share"]].tolist() == [pytest.approx(2 / 3), 0.8]
    assert shown.loc[("Hernia", "Mass"), ["share", "real_share", "images"]].tolist() == [0.5, 1.0, 2]
    assert shown.loc[("Hernia", "Edema"), ["share", "real_share"]].isna().all()
    assert shown.loc[("Edema", "Mass"), "share"] == 1.0
    assert np.isnan(shown.loc[("Edema", "Mass"), "real_share"])


def test_findings_that_occur_together_in_patients_are_not_a_confusion() -> None:
    """Every real Hernia comes with Mass; images made alike show both as often as patients do."""
    n, rng = 400, numpy_generator("together")
    both = rng.random((n, 3)) * 0.5
    labels = table(np.column_stack([np.ones(n), np.arange(n) < n // 2, np.zeros(n)]), "u")
    both[:, 0] += 0.4
    both[: n // 2, 1] += 0.4
    held_out, scores = table(both, "u"), table(both[: n // 2], "s")
    shown = confusion(held_out, labels, scores, pd.Series("Hernia", index=scores.index)).set_index("predicted")
    assert shown.loc["Mass", "share"] == shown.loc["Mass", "real_share"] > 0.4
    assert shown.loc["Hernia", "share"] == shown.loc["Hernia", "real_share"] == 0.5


def test_filtering_by_hand() -> None:
    """The verifier scores Mass 0.0, 0.2, 0.4, 0.6, 0.8; the evaluation classifier accepts Mass from 0.3."""
    evaluation_scores, labels, scores, made_for = by_hand()
    verifier_scores = evaluation_scores.assign(Mass=[0.8, 0.6, 0.4, 0.2, 0.0, 1.0])
    verified = pd.Series([0.1, 0.5, 0.7, 0.9, 0.9, 0.9], index=scores.index)
    found = filter_effect(verifier_scores, evaluation_scores, labels, verified, scores, made_for, (0.0, 0.5, 0.75))
    assert tuple(found.columns) == FILTER_EFFECT
    shown = found.set_index(["finding", "quantile"]).loc["Mass"]
    assert shown["kept"].tolist() == [3, 2, 1]
    assert shown["accepted_share"].tolist() == [pytest.approx(2 / 3), 0.5, 1.0]
    assert shown["real_reference"].tolist() == [3 / 5, pytest.approx(1 / 3), 0.0]
    edema = found.set_index(["finding", "quantile"]).loc["Edema"]
    assert edema["kept"].tolist() == [1, 0, 0]
    assert edema["accepted_share"].isna().all()
    whole = found.set_index(["finding", "quantile"]).loc["all"]
    assert whole.loc[0.0, "kept"] == 6
    assert whole.loc[0.0, "accepted_share"] == pytest.approx((2 + 1) / 5)
    assert whole.loc[0.0, "real_reference"] == pytest.approx((3 * 0.6 + 2 * 1.0) / 5)


def test_quantile_zero_of_filtering_is_agreement_at_the_evaluation_classifiers_median() -> None:
    held_out, labels, scores, made_for = by_hand()
    plain = agreement(held_out, labels, scores, made_for, (0.5,))
    off = filter_effect(1 - held_out, held_out, labels, scores["Edema"], scores, made_for, (0.0,))
    names = {"accepted_share": "synthetic", "real_reference": "real"}
    same = ["finding", "synthetic", "low", "high", "real"]
    pd.testing.assert_frame_equal(off.rename(columns=names)[same], plain[same])


def test_a_mixture_of_right_and_wrong_images_is_measured_and_filtering_mends_it() -> None:
    """A share r of images scores as real positives do, the rest as negatives: r (1 - q) + (1 - r) P(negative reaches).

    Verifier and evaluation classifier err independently given the truth, so by Bayes the images that the verifier
    accepts are right more often.
    """
    n, right, rng = 20000, 0.6, numpy_generator("mixture")
    positive, negative = rng.normal(2, 1, (2, n)), rng.normal(0, 1, (2, n))
    true = np.arange(n) < right * n
    b, c = (np.where(true, rng.normal(2, 1, n), rng.normal(0, 1, n)) for _ in range(2))
    labels = table([[1, 0, 0]] * n + [[0, 0, 0]] * n, "u")
    verifier_scores, evaluation_scores = (
        table(np.outer(np.concatenate([p, q]), [1, 0, 0]), "u") for p, q in zip(positive, negative, strict=True)
    )
    scores = table(np.outer(c, [1, 0, 0]), "s")
    made_for = pd.Series("Mass", index=scores.index)
    (found,) = (
        agreement(evaluation_scores, labels, scores, made_for, (0.5,)).query("finding == 'Mass'").to_dict("records")
    )
    reach = 0.0228  # P(N(0,1) > 2)
    assert found["real"] == pytest.approx(0.5, abs=1e-4)
    assert found["synthetic"] == pytest.approx(right * 0.5 + (1 - right) * reach, abs=0.01)
    shown = filter_effect(
        verifier_scores, evaluation_scores, labels, pd.Series(b, index=scores.index), scores, made_for, (0.0, 0.5)
    )
    kept = shown.query("finding == 'Mass' and quantile == 0.5").iloc[0]
    assert kept["kept"] / n == pytest.approx(right * 0.5 + (1 - right) * reach, abs=0.01)
    purer = right * 0.5 / (right * 0.5 + (1 - right) * reach)
    assert kept["accepted_share"] == pytest.approx(purer * 0.5 + (1 - purer) * reach, abs=0.015)
    assert kept["real_reference"] == pytest.approx(0.5, abs=0.015)


probabilities = st.lists(
    st.lists(st.integers(0, 10).map(lambda n: n / 10), min_size=3, max_size=3), min_size=1, max_size=12
)


@settings(max_examples=40)
@given(probabilities, probabilities, st.data())
def test_any_table_equals_the_loop_and_falls_with_the_quantile(
    real: list[list[float]], made: list[list[float]], data: st.DataObject
) -> None:
    held_out, scores = table(real, "u"), table(made, "s")
    known = st.sampled_from([0.0, 1.0, np.nan])
    labels = table([[data.draw(known) for _ in FINDINGS] for _ in real], "u")
    made_for = pd.Series([data.draw(st.sampled_from(FINDINGS)) for _ in made], index=scores.index)
    found = agreement(held_out, labels.iloc[::-1], scores, made_for.iloc[::-1])
    for row in found[found["finding"] != "all"].to_dict("records"):
        name = row["finding"]
        positive = [
            p[FINDINGS.index(name)] for p, uid in zip(real, labels.index, strict=True) if labels.at[uid, name] == 1
        ]
        own = [p[FINDINGS.index(name)] for p, uid in zip(made, scores.index, strict=True) if made_for[uid] == name]
        if not positive:
            assert row["reason"] != ""
            assert np.isnan(row["synthetic"])
            continue
        limit = np.quantile(positive, row["quantile"])
        assert row["limit"] == pytest.approx(limit)
        assert row["real"] == np.mean(np.array(positive) >= row["limit"])
        assert row["synthetic"] == np.mean(np.array(own) >= row["limit"])
        assert 0 <= row["low"] <= row["synthetic"] + 1e-12
        assert row["synthetic"] - 1e-12 <= row["high"] <= 1
    for _, part in found.groupby("finding"):
        for column in ("real", "synthetic"):
            assert (part[column].dropna().diff().dropna() <= 1e-12).all()


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 30), st.booleans())
def test_all_agree_and_all_disagree(n: int, m: int, agree: bool) -> None:
    rng = numpy_generator(n, m)
    held_out, labels = table(0.2 + 0.6 * rng.random((n, 3)), "u"), table(np.ones((n, 3)), "u")
    scores = table(np.full((m, 3), 0.9 if agree else 0.1), "s")
    made_for = pd.Series(rng.choice(FINDINGS, m), index=scores.index)
    found = agreement(held_out, labels, scores, made_for)
    assert (found["synthetic"] == float(agree)).all()
    np.testing.assert_allclose(found["high" if agree else "low"], float(agree), atol=1e-12)
    assert (found["accepted_images"] == (found["images"] if agree else 0)).all()
    assert (confusion(held_out, labels, scores, made_for)["share"] == float(agree)).all()


def test_findings_without_scores_are_left_out_with_a_reason() -> None:
    held_out, labels, scores, made_for = by_hand()
    scores.loc["s0", "Mass"] = np.nan
    scores.loc[["s3", "s4"], "Hernia"] = np.nan
    shown = agreement(held_out, labels, scores, made_for, (0.5,)).set_index("finding")
    assert shown.loc["Mass", ["images", "accepted_images"]].tolist() == [2, 1]
    assert shown.loc["Hernia", "reason"] == "no image made for Hernia has a score"
    assert np.isnan(shown.loc["Hernia", "synthetic"])
    assert shown.loc["all", "images"] == 2
    verified = pd.Series([0.9, np.nan, 0.9, 1, 1, 1], index=scores.index)
    kept = filter_effect(held_out, held_out, labels, verified, scores, made_for, (0.0, 0.1)).set_index(
        ["finding", "quantile"]
    )
    assert kept.loc["Mass", "kept"].tolist() == [3, 2]


def test_a_classifier_without_positives_or_negatives_of_a_finding_gives_no_score() -> None:
    """Only fold 0 has Mass, so classifier 0 is trained without it; every known row has Edema."""
    fold = pd.Series([0, 0, 1, 1, 2, 2], index=[f"u{i}" for i in range(6)])
    labels = table([[1, 1, 1], [0, 0, 1], [0, 1, 1], [0, 0, np.nan], [np.nan, 1, 1], [0, 0, 1]], "u")
    scores = table(np.full((6, 3), 0.5), "u")
    found = mask_unobserved(scores, fold, labels, fold)
    assert found["Mass"].isna().tolist() == [True, True, False, False, False, False]
    assert found["Hernia"].notna().all()
    assert found["Edema"].isna().all()
    assert scores.notna().all(axis=None)
    images = table(np.full((3, 3), 0.5), "s")
    classifier = pd.Series([2, 0, 1], index=["s2", "s0", "s1"])
    assert mask_unobserved(images, classifier, labels, fold)["Mass"].isna().tolist() == [True, False, False]
    limits = agreement(found, labels, images, pd.Series("Mass", index=images.index), (0.5,))
    assert limits["reason"].iloc[0].startswith("no real positive of Mass has a score")


def test_unknown_labels_everywhere_give_no_number() -> None:
    held_out, labels, scores, made_for = by_hand()
    found = agreement(held_out, labels * np.nan, scores, made_for)
    assert found[["real", "synthetic", "low", "high"]].isna().all(axis=None)
    assert (found["reason"] != "").all()
    assert confusion(held_out, labels * np.nan, scores, made_for)[["share", "real_share"]].isna().all(axis=None)


def test_a_source_without_images_has_one_empty_row() -> None:
    held_out, labels, scores, made_for = by_hand()
    found = agreement(held_out, labels, scores.iloc[:0], made_for.iloc[:0], (0.5,))
    assert found["finding"].tolist() == ["all"]
    assert found["images"].tolist() == [0]
    assert len(confusion(held_out, labels, scores.iloc[:0], made_for.iloc[:0])) == 0


def test_tables_that_do_not_match_are_refused() -> None:
    held_out, labels, scores, made_for = by_hand()
    with pytest.raises(InputError, match=r"real rows have scores of .* use the same"):
        agreement(held_out[["Hernia", "Mass", "Edema"]], labels, scores, made_for)
    with pytest.raises(InputError, match=r"image 's5' \(of 1\) lacks scores or a finding"):
        agreement(held_out, labels, scores, made_for.drop("s5"))
    with pytest.raises(InputError, match="made for 'Fracture', which has no scores"):
        confusion(held_out, labels, scores, made_for.replace("Edema", "Fracture"))
    with pytest.raises(InputError, match=r"real row 'u0' \(of 1\) has no labels"):
        agreement(held_out, labels.drop("u0"), scores, made_for)
    with pytest.raises(
        InputError, match=r"'u5' \(of 1\) has scores of the verifiers or of the evaluation classifiers only"
    ):
        filter_effect(held_out.drop("u5"), held_out, labels, scores["Mass"], scores, made_for)
