"""LongTailAugmenter in the manners of scikit-learn and imbalanced-learn."""

from typing import Any

import pytest
from sklearn.base import clone

import medlt


def test_parameters_are_those_of_an_estimator() -> None:
    augmenter = medlt.LongTailAugmenter(method="edit", sampling_strategy=50)
    assert augmenter.get_params() == {
        "method": "edit", "sampling_strategy": 50, "random_state": 0, "output_dir": None, "settings": None,
        "progress": True,
    }  # fmt: skip
    assert augmenter.set_params(random_state=4) is augmenter
    assert clone(augmenter).get_params() == augmenter.get_params()
    assert not hasattr(augmenter, "run_")
    with pytest.raises(ValueError, match="stepz"):
        augmenter.set_params(stepz=1)
    assert "edit" in repr(augmenter)


def test_fit_resample_returns_the_enlarged_collection(
    tiny_run: medlt.Run, tiny_collection: medlt.Collection, tiny_settings: dict[str, Any]
) -> None:
    own = {"method": "method", "targets": "sampling_strategy", "seed": "random_state"}
    rest = {name: value for name, value in tiny_settings.items() if name not in own}
    augmenter = medlt.LongTailAugmenter(
        **{own[name]: tiny_settings[name] for name in own}, output_dir=tiny_run.folder, settings=rest, progress=False
    )
    enlarged = augmenter.fit_resample(tiny_collection)
    assert augmenter.run_ == tiny_run
    assert len(enlarged) == len(tiny_collection) + len(tiny_run.images())
    made = tiny_run.images().rows["finding"].value_counts()
    assert augmenter.sampling_strategy_ == made.to_dict()
    assert set(augmenter.sampling_strategy_) <= set(augmenter.tail_)
    assert augmenter.findings_ == tiny_collection.findings
    before, after = (one.manifest.split("train").counts()["positive"] for one in (tiny_collection, enlarged))
    assert all(after[name] >= before[name] + count for name, count in augmenter.sampling_strategy_.items())
    real = enlarged.manifest.rows.loc[tiny_collection.manifest.rows.index]
    assert not real["synthetic"].any()
