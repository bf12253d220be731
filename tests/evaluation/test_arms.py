import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medlt.classify.sets import TrainingSet
from medlt.evaluation.arms import ArmScores, count_matched_control, relabelled, select_by_ratio
from medlt.types import InputError

LABELS = np.array([[1, 0], [0, np.nan], [0, 1]], dtype=np.float32)


def real() -> TrainingSet:
    images = torch.arange(3, dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 1, 4, 4).clone()
    return TrainingSet(images, LABELS, np.ones(3, np.float32), ("a", "b", "c"))


def test_the_control_repeats_the_tail_parents_count_for_count() -> None:
    kept = pd.DataFrame({"tail_parent": ["c", "a", "c"]}, index=["s0", "s1", "s2"])
    control = count_matched_control(kept, real(), 0.3)
    assert control.images[:, 0, 0, 0].tolist() == [2, 0, 2]
    np.testing.assert_array_equal(control.labels, LABELS[[2, 0, 2]])
    assert control.weights.tolist() == pytest.approx([0.3] * 3)
    assert len(set(control.uids)) == 3


def test_a_parent_that_is_no_train_row_is_an_error() -> None:
    with pytest.raises(KeyError, match="test-row"):
        count_matched_control(pd.DataFrame({"tail_parent": ["test-row"]}), real(), 0.3)


def kept(counts: dict[str, int], seed: int = 0) -> pd.DataFrame:
    """Kept images, slots in no order, with the verifier's probability."""
    draw = np.random.default_rng(seed)
    rows = [(name, slot) for name, n in counts.items() for slot in draw.permutation(n)]
    table = pd.DataFrame(rows, columns=["finding", "slot"]).assign(verifier=draw.random(len(rows)))
    return table.set_index(table["finding"].astype(str) + table["slot"].astype(str))


def test_a_ratio_counts_in_train_positives_and_takes_slots_in_order() -> None:
    uids, wanted = select_by_ratio(kept({"Hernia": 20, "Mass": 4}), {"Hernia": 8, "Mass": 10}, synthetic_ratio=0.5)
    assert uids == ["Hernia0", "Hernia1", "Hernia2", "Hernia3", "Mass0", "Mass1", "Mass2", "Mass3"]
    assert wanted == 4 + 5  # one Mass fewer than wanted
    assert sorted(select_by_ratio(kept({"Hernia": 20, "Mass": 4}), {})[0]) == sorted(
        kept({"Hernia": 20, "Mass": 4}).index
    )


@given(small=st.floats(0.1, 4), more=st.floats(1, 3), best=st.floats(0.05, 1), n=st.integers(1, 30))
def test_a_larger_ratio_contains_a_smaller_one(small: float, more: float, best: float, n: int) -> None:
    table, positives = kept({"Hernia": n, "Mass": 7}), {"Hernia": 8, "Mass": 10}
    less, larger = (select_by_ratio(table, positives, ratio, best)[0] for ratio in (small, small * more))
    assert set(less) <= set(larger)
    assert len(set(larger)) == len(larger)


@given(best=st.floats(0.05, 1), n=st.integers(1, 30))
def test_keep_top_takes_the_images_of_highest_verifier_probability(best: float, n: int) -> None:
    table = kept({"Hernia": n})
    chosen, _ = select_by_ratio(table, {"Hernia": 8}, keep_top=best)
    assert len(chosen) == math.ceil(best * n)
    left_out = table["verifier"].drop(chosen)
    assert left_out.empty or left_out.max() <= table.loc[chosen, "verifier"].min()


def test_labels_soft_hard_and_by_verifiers() -> None:
    labels = pd.DataFrame({"a": [0.2, 0.5, np.nan], "b": [1.0, 0.49, 0.0]}, index=list("xyz"))
    verified = pd.DataFrame(0.3, index=list("zyx"), columns=["b", "a"])
    assert relabelled(labels, "soft") is labels
    pd.testing.assert_frame_equal(
        relabelled(labels, "hard"),
        pd.DataFrame({"a": [0, 1, np.nan], "b": [1, 0, 0]}, index=list("xyz")).astype(np.float32),
    )
    assert relabelled(labels, "verifier", verified).equals(verified.loc[labels.index, labels.columns])
    with pytest.raises(InputError, match="the source has no verifiers"):
        relabelled(labels, "verifier")


def arms(single: bool = False) -> ArmScores:
    truth = np.array([[1, 0], [0, 1], [1, np.nan], [0, 0]], dtype=float)
    scores = np.array([[[0.9, 0.2], [0.4, 0.6], [0.3, 0.1], [0.1, 0.5]]])
    val_truth = np.array([[1, 0], [0, 0], [1, 0]], dtype=float)
    val = np.array([[[0.8, 0.2], [0.5, 0.6], [0.35, 0.1]]])
    return ArmScores({"real": scores}, truth, list("pqrs"), ("a", "b"), {"real": val}, val_truth, single)


def test_a_finding_is_decided_on_at_its_validation_threshold() -> None:
    decisions = arms().decisions("real")
    assert decisions is not None
    # best F1 on validation: at 0.35 all three are called a, precision 2/3 and recall 1, F1 0.8; at 0.8 F1 is 2/3
    np.testing.assert_array_equal(decisions[0, :, 0], [1, 1, 0, 0])
    assert np.isnan(decisions[0, :, 1]).all()  # no positive of b on validation: no threshold


def test_of_single_labels_the_most_probable_is_decided_on() -> None:
    decisions = arms(single=True).decisions("real")
    assert decisions is not None
    np.testing.assert_array_equal(decisions[0], [[1, 0], [0, 1], [1, 0], [0, 1]])


def test_validation_macro_ap_leaves_out_what_has_no_positive() -> None:
    assert arms().validation_ap("real", ["a", "b"]).tolist() == pytest.approx([(1 + 2 / 3) / 2])
    with pytest.raises(InputError, match="split val"):
        ArmScores({}, np.zeros((1, 1)), ["p"], ("a",)).validation_ap("real", ["a"])
