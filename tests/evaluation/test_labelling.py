"""Label checks of sources: evaluation classifiers without another role, and tables of the sources that have images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from medlt.checks.separation import digest_network
from medlt.classify.classifier import Classifier
from medlt.evaluation.arms import ExperimentRows
from medlt.evaluation.labelling import TABLES, check_labels, evaluation_classifiers
from medlt.evaluation.sources import SourceImages
from medlt.store import Store
from medlt.training.runtime import Runtime
from medlt.types import InputError

MakeSource = Callable[..., SourceImages]


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    settings = {"steps": 2, "batch_size": 4, "evaluate_every": 1}
    return {"settings": settings, "runtime": Runtime("cpu", "fp32", 1, 0), "store": Store(tmp_path / "store")}


def test_a_block_a_source_in_every_table(
    rows: ExperimentRows, source: MakeSource, options: dict[str, Any], tmp_path: Path
) -> None:
    none = source(name="none", kept=pd.DataFrame(index=pd.Index([], name="uid")))
    found = check_labels([source(), none], rows.train, rows.val, tmp_path, **options)
    assert set(found) == set(TABLES)
    for name in TABLES:
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / f"{name}.parquet"), found[name])
        assert set(found[name]["source"]) == ({"x", "none"} if name == "rejections" else {"x"})
    assert found["rejections"][["check", "images", "planned"]].values.tolist() == [["label", 1, 5]] * 2
    agreed = found["agreement"].set_index(["finding", "quantile"])
    assert agreed.loc[("Hernia", 0.5), "images"] == 4
    again = check_labels([], rows.train, rows.val, tmp_path, **options)
    assert again == {}
    assert [name for name in TABLES if (tmp_path / f"{name}.parquet").exists()] == []
    assert len(list((tmp_path / "superseded").glob("*.parquet"))) == len(TABLES)


def test_a_network_that_guided_the_images_is_no_evaluation_classifier(
    rows: ExperimentRows, source: MakeSource, options: dict[str, Any]
) -> None:
    classifiers = evaluation_classifiers(source(), rows.train, rows.val, **options)
    one, other = classifiers.verifiers
    assert isinstance(one, Classifier)
    assert isinstance(other, Classifier)
    assert digest_network(one.net) != digest_network(other.net)
    with pytest.raises(InputError, match="has the roles guidance and evaluation"):
        evaluation_classifiers(source(guiding=(digest_network(one.net),)), rows.train, rows.val, **options)


def test_evaluation_classifiers_run_where_the_runtime_says(
    rows: ExperimentRows, source: MakeSource, options: dict[str, Any]
) -> None:
    runtime = Runtime("cuda:7", "fp32", 1, 0)
    with pytest.raises((InputError, RuntimeError)):
        evaluation_classifiers(source(), rows.train, rows.val, **options | {"runtime": runtime})
