import numpy as np
import pandas as pd
import pytest
import torch

from medlt.classify.sets import TrainingSet
from medlt.evaluation.arms import duplicated, train

LABELS = np.array([[1, 0], [0, np.nan], [0, 1]], dtype=np.float32)


def real() -> TrainingSet:
    images = torch.arange(3, dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 1, 4, 4).clone()
    return TrainingSet(images, LABELS, np.ones(3, np.float32), ("a", "b", "c"))


def test_the_control_repeats_the_tail_parents_count_for_count() -> None:
    kept = pd.DataFrame({"parent_a": ["c", "a", "c"]}, index=["s0", "s1", "s2"])
    control = duplicated(kept, real(), 0.3)
    assert control.images[:, 0, 0, 0].tolist() == [2, 0, 2]
    np.testing.assert_array_equal(control.labels, LABELS[[2, 0, 2]])
    assert control.weights.tolist() == pytest.approx([0.3] * 3)
    assert len(set(control.uids)) == 3


def test_a_parent_that_is_no_train_row_is_an_error() -> None:
    with pytest.raises(KeyError, match="test-row"):
        duplicated(pd.DataFrame({"parent_a": ["test-row"]}), real(), 0.3)


def test_every_arm_meets_every_seed_once_in_order() -> None:
    met: list[tuple[bool, int, str]] = []

    def fit(added: TrainingSet | None, seed: int, name: str) -> np.ndarray:
        met.append((added is None, seed, name))
        return np.full((2, 1), seed)

    scores = train({"real": None, "more": real()}, [4, 5], fit)
    assert met == [(True, 4, "real"), (True, 5, "real"), (False, 4, "more"), (False, 5, "more")]
    assert scores["more"].shape == (2, 2, 1)
    assert scores["more"][:, 0, 0].tolist() == [4, 5]
