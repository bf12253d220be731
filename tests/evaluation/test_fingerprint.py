"""The fingerprint of codecs that stamp and of codecs that do not, and the verdicts that it allows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from medlt.classify.sets import TrainingSet
from medlt.evaluation.arms import REAL, Arm, ExperimentRows
from medlt.evaluation.engine import train_arms
from medlt.evaluation.fingerprint import (
    MOST,
    CodedImages,
    fingerprint,
    fingerprint_record,
    fingerprint_table,
    healthy,
    limited,
)
from medlt.store import Store
from medlt.training.runtime import Runtime
from medlt.types import InputError

CPU = Runtime("cpu", "fp32", 1, 0)


def stamped(images: Tensor) -> Tensor:
    """A codec that leaves bars in every image."""
    coded = images.clone()
    coded[..., ::4, :] = 255
    return coded


def noise(prefix: str, n: int, seed: int) -> TrainingSet:
    """n images of noise, with labels that nothing in them shows."""
    draw = np.random.default_rng(seed)
    pixels = torch.from_numpy(draw.integers(60, 200, (n, 1, 32, 32), dtype=np.uint8))
    labels = (draw.random((n, 2)) < [0.5, 0.3]).astype(np.float32)
    return TrainingSet(pixels, labels, np.ones(n, np.float32), tuple(f"{prefix}{i}" for i in range(n)))


@pytest.fixture
def plain() -> ExperimentRows:
    groups = {"head": ("a",), "tail": ("b",)}
    parts = [noise(name, n, seed) for seed, (name, n) in enumerate({"r": 80, "v": 60, "t": 20}.items())]
    return ExperimentRows(*parts, ("a", "b"), groups, [str(i) for i in range(20)], pd.DataFrame(index=range(20)))


def arm(rows: ExperimentRows, name: str, images: Tensor) -> Arm:
    """Rows of tail finding b alone are added."""
    labels = np.tile(np.array([[0, 1]], np.float32), (len(images), 1))
    added = TrainingSet(
        images, labels, np.ones(len(images), np.float32), tuple(f"{name}{i}" for i in range(len(images)))
    )
    settings = {"steps": 60, "batch_size": 16, "evaluate_every": 60, "synthetic_fraction": 0.3, "augment": "none"}
    return Arm(name, "synthetic", settings, added, REAL, {"source": "x"})


def test_classifiers_learn_a_stamp_on_every_positive_and_nothing_from_raw_ones(
    plain: ExperimentRows, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = healthy(plain, 0)
    patients = tuple(f"p{i}" for i in rows)
    coded = CodedImages(rows, patients, {"x": stamped(plain.val.images[rows])})
    source = noise("s", 40, 9).images
    arms = [arm(plain, "stamped", stamped(source)), arm(plain, "raw", source)]
    store = Store(tmp_path_factory.mktemp("store"))
    trained = train_arms(plain, arms, [0, 1], runtime=CPU, store=store, coded=coded)
    table = fingerprint_table(plain, trained.val, trained.coded, coded, n_bootstrap=100, seed=0)
    mean = table[table["finding"] == "tail"].set_index("arm")
    assert mean.loc["stamped", "auroc"] > 0.95
    assert mean.loc["stamped", "low"] > 0.9
    assert mean.loc["raw", "auroc"] < 0.7
    assert set(table["images"]) == {len(rows)}


def test_equal_images_give_one_half_and_ordered_ones_one() -> None:
    draw = np.random.default_rng(0)
    raw = draw.random((2, 30, 3)) / 2
    patients = [str(i // 2) for i in range(30)]
    for coded, value in ((raw, 0.5), (raw + 0.5, 1.0), (raw - 0.5, 0.0)):
        found = fingerprint(raw, coded, patients, n_bootstrap=50, rng=np.random.default_rng(0))
        assert len(found) == 4  # the mean, and each finding
        np.testing.assert_allclose(found, value)


def test_healthy_rows_have_no_tail_finding_and_are_capped(plain: ExperimentRows) -> None:
    found = healthy(plain, 0)
    assert found.tolist() == np.flatnonzero(plain.val.labels[:, 1] == 0).tolist()
    plain.val.labels[found[0], 1] = np.nan  # unknown is not negative
    assert found[0] not in healthy(plain, 0)
    many = noise("v", 2 * MOST, 5)
    many.labels[:, 1] = 0
    wide = ExperimentRows(plain.train, many, plain.test, plain.findings, plain.groups, plain.patients, plain.attributes)
    assert len(healthy(wide, 0)) == MOST
    assert healthy(wide, 0).tolist() != healthy(wide, 1).tolist()


def test_an_arm_takes_the_codec_of_its_source_and_a_real_arm_the_first() -> None:
    one, other = (torch.full((2, 1, 4, 4), n, dtype=torch.uint8) for n in (1, 2))
    coded = CodedImages(np.array([0, 1]), ("p", "q"), {"x": one, "y": other})
    settings = {"steps": 1}
    assert coded.of(Arm("a", "synthetic", settings, about={"source": "y"})) is other
    assert coded.of(Arm(REAL, "real", settings, about={"source": ""})) is one
    assert coded.of(Arm("b", "synthetic", settings, about={"source": "plain table"})) is None
    drawn = replace(coded, real_pixels=frozenset({"drawn"}))
    assert drawn.of(Arm("a", "synthetic", settings, about={"source": "drawn"})) is one
    assert coded.of(Arm("a", "synthetic", settings, about={"source": "private"})) is None
    assert CodedImages().of(Arm(REAL, "real", settings)) is None
    with pytest.raises(InputError, match="differ in number"):
        CodedImages(np.array([0, 1]), ("p",), {"x": one})


TABLE = pd.DataFrame(
    [("a", "tail", 0.95, 0.9, 0.99, 9), ("a", "b", 0.1, 0, 0.2, 9), ("c", "tail", 0.7, 0.6, 0.8, 9),
     ("d", "tail", np.nan, np.nan, np.nan, 0)],
    columns=["arm", "finding", "auroc", "low", "high", "images"],
)  # fmt: skip


@pytest.mark.parametrize(
    ("arm", "verdict", "read"),
    [
        ("a", "helps", "no evidence"),
        ("a", "no evidence", "no evidence"),
        ("a", "harms", "harms"),
        ("c", "helps", "helps"),  # the limit itself is allowed
        ("d", "helps", "helps"),  # no codec
        ("e", "helps", "helps"),
    ],
)
def test_an_arm_with_a_fingerprint_never_helps(arm: str, verdict: str, read: str) -> None:
    given = pd.DataFrame({"arm": [arm], "verdict": [verdict], "reason": [""]})
    found = limited(given, TABLE)
    assert found["verdict"].tolist() == [read]
    assert found["reason"].tolist() == ["it calls coded images tail-positive, AUROC 0.95" if read != verdict else ""]


def test_the_record_holds_the_mean_and_says_where_there_is_no_codec() -> None:
    assert fingerprint_record(TABLE) == {
        "a": {"auroc": 0.95, "low": 0.9, "high": 0.99},
        "c": {"auroc": 0.7, "low": 0.6, "high": 0.8},
        "d": None,
    }
