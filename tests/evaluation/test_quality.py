"""The quality table has the metrics of the right rows, and reasons for missing values."""

import numpy as np
import pandas as pd
import pytest

from medlt.evaluation.quality import COLUMNS, METRICS, OVERALL, quality
from medlt.metrics.features import scaled
from medlt.metrics.fidelity import frechet, kid
from medlt.metrics.manifold import prdc
from medlt.metrics.rarity import avg_knn, rarity_summary
from medlt.types import InputError

FINDINGS = ("Hernia", "Edema", "Mass")


def case(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """80 real rows with overlapping and unknown labels, 60 synthetic ones for two of the three findings."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0.0, 1.0, np.nan], size=(80, 3), p=[0.5, 0.4, 0.1])
    real, synthetic = rng.normal(2, 3, size=(80, 4)), rng.normal(2, 3, size=(60, 4))
    return real, labels, synthetic, ["Hernia"] * 25 + ["Mass"] * 35


def value(table: pd.DataFrame, finding: str, metric: str) -> float:
    (found,) = table.query("finding == @finding and metric == @metric")["value"]
    return float(found)


def test_every_finding_with_images_has_every_metric_of_its_own_rows() -> None:
    real, labels, synthetic, made_for = case()
    table = quality(real, labels, synthetic, made_for, FINDINGS)
    assert list(table.columns) == list(COLUMNS)
    assert list(table["finding"].unique()) == ["Hernia", "Mass", OVERALL]
    names = [name for group, _ in METRICS for name in group]
    assert all(list(part["metric"]) == names for _, part in table.groupby("finding"))
    r, s = scaled(real, synthetic)
    sets = {
        "Hernia": (r[labels[:, 0] == 1], s[:25]),
        "Mass": (r[labels[:, 2] == 1], s[25:]),
        OVERALL: (r[(labels[:, 0] == 1) | (labels[:, 2] == 1)], s),
    }
    for finding, (first, second) in sets.items():
        part = table[table["finding"] == finding]
        assert (part["n_real"] == len(first)).all()
        assert (part["n_synthetic"] == len(second)).all()
        assert value(table, finding, "KID") == pytest.approx(kid(first, second).value)
        assert value(table, finding, "FID") == pytest.approx(frechet(first, second))
        assert value(table, finding, "recall") == prdc(first, second)["recall"]
        assert value(table, finding, "AvgkNN") == pytest.approx(avg_knn(first, second).mean())
        found = (value(table, finding, "rarity"), value(table, finding, "rarity outside"))
        assert found == pytest.approx(rarity_summary(first, second))


def test_the_unit_of_a_feature_does_not_matter() -> None:
    real, labels, synthetic, made_for = case()
    unit = np.array([1e-3, 1, 10, 1e5])
    plain = quality(real, labels, synthetic, made_for, FINDINGS)
    other = quality(real * unit, labels, synthetic * unit, made_for, FINDINGS)
    np.testing.assert_allclose(plain["value"], other["value"], rtol=1e-6, atol=1e-9)


def test_bad_images_lower_the_quality_of_their_finding_only() -> None:
    real, labels, synthetic, made_for = case()
    bad = synthetic.copy()
    bad[25:] += 12
    good, worse = (quality(real, labels, s, made_for, FINDINGS) for s in (synthetic, bad))
    assert value(worse, "Mass", "KID") > 1 > value(good, "Mass", "KID")
    assert value(worse, "Mass", "precision") < value(good, "Mass", "precision")
    assert value(worse, "Mass", "AvgkNN") > value(good, "Mass", "AvgkNN")
    assert value(worse, "Hernia", "KID") == value(good, "Hernia", "KID")


def test_too_few_rows_are_nan_with_the_rule() -> None:
    real, labels, synthetic, _ = case()
    labels[:, 0] = 0
    labels[:4, 0] = 1
    table = quality(real, labels, synthetic, ["Hernia"] * 5 + ["Mass"] * 55, FINDINGS)
    hernia = table[table["finding"] == "Hernia"].set_index("metric")
    assert hernia.loc["KID", "reason"] == "4 real rows; KID needs at least 10"
    assert hernia.loc["coverage", "reason"] == "4 real rows; a ball of 5 neighbours needs at least 6"
    assert hernia.loc["LOF", "reason"] == "4 real rows; a neighbourhood of 20 needs at least 21"
    assert np.isfinite(hernia.loc[["FID", "rarity outside"], "value"].to_numpy(float)).all()
    assert ((table["reason"] != "") == table["value"].isna()).all()


def test_no_positive_at_all_gives_reasons() -> None:
    real, labels, synthetic, made_for = case()
    labels[:, 0] = np.nan
    table = quality(real, labels, synthetic, made_for, FINDINGS)
    hernia = table[table["finding"] == "Hernia"]
    assert hernia["value"].isna().all()
    assert hernia["reason"].str.contains("0 real rows").all()


def test_samples_outside_all_balls_have_a_reason() -> None:
    real, labels, synthetic, made_for = case()
    table = quality(real, labels, synthetic + 1e4, made_for, FINDINGS).set_index(["finding", "metric"])
    assert table.loc[("Mass", "rarity outside"), "value"] == 1
    assert "outside" in str(table.loc[("Mass", "rarity"), "reason"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"made_for": ["Hernia"]}, "60 synthetic rows but 1"),
        ({"made_for": ["Cyst"] * 60}, "'Cyst'"),
        ({"labels": np.zeros((80, 2))}, r"\[80,3\]"),
        ({"synthetic": np.zeros((60, 9))}, "one extractor"),
    ],
)
def test_bad_input_is_refused(change: dict[str, object], message: str) -> None:
    real, labels, synthetic, made_for = case()
    given = {"real": real, "labels": labels, "synthetic": synthetic, "made_for": made_for} | change
    with pytest.raises(InputError, match=message):
        quality(**given, findings=FINDINGS)  # type: ignore[arg-type]


def test_of_many_rows_a_drawn_sample_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics are those of few rows of a side, and near those of all; the same rows are drawn each time."""
    real, labels, synthetic, made_for = case()
    whole = quality(real, labels, synthetic, made_for, FINDINGS)
    monkeypatch.setattr("medlt.evaluation.quality.MOST", 30)
    some = quality(real, labels, synthetic, made_for, FINDINGS)
    pd.testing.assert_frame_equal(some, quality(real, labels, synthetic, made_for, FINDINGS))
    assert some["n_real"].to_list() == whole["n_real"].clip(upper=30).to_list()
    assert some["n_synthetic"].to_list() == whole["n_synthetic"].clip(upper=30).to_list()
    assert value(some, OVERALL, "KID") != value(whole, OVERALL, "KID")
    spread = 4 * value(some, OVERALL, "KID sd")
    assert abs(value(some, OVERALL, "KID") - value(whole, OVERALL, "KID")) < spread
    monkeypatch.setattr("medlt.evaluation.quality.MOST", int(whole.query("finding != @OVERALL")["n_real"].max()))
    same = quality(real, labels, synthetic, made_for, FINDINGS)
    exact = same["finding"] == "Hernia"
    pd.testing.assert_frame_equal(same[exact], whole[exact])
