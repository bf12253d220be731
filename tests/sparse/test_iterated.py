"""The loop: exact resume, honest table, generations that differ, refusals."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from medlt.sparse import health, iterated
from medlt.sparse.embedding import SimplicialCoder
from medlt.sparse.iterated import Iterated, iterate
from medlt.sparse.phases import Lesson
from medlt.types import InputError

Data = tuple[torch.Tensor, np.ndarray, torch.Tensor, np.ndarray]
FAST = {
    "groups": 2, "vocabulary": 4, "temperature": 0.2, "imitation_epochs": 1, "adaptation_epochs": 1,
    "interaction_epochs": 2, "width": 4, "batch": 16, "learning_rate": 5e-3,
}  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_run_stopped_after_a_generation_ends_with_the_same_bytes(toy_latents: Data, tmp_path: Path) -> None:
    whole = iterate(*toy_latents, folder=tmp_path / "whole", generations=3, **FAST)
    iterate(*toy_latents, folder=tmp_path / "stopped", generations=2, **FAST)
    kept = (tmp_path / "stopped" / "generation_01.safetensors").stat().st_mtime_ns
    resumed = iterate(*toy_latents, folder=tmp_path / "stopped", generations=3, **FAST)
    assert (tmp_path / "stopped" / "generation_01.safetensors").stat().st_mtime_ns == kept, "made once"
    assert files(tmp_path / "whole") == files(tmp_path / "stopped")
    pd.testing.assert_frame_equal(whole.health, resumed.health)
    assert whole.coder.digest == resumed.coder.digest


def test_a_lost_generation_is_made_again_the_same(toy_latents: Data, tmp_path: Path) -> None:
    iterate(*toy_latents, folder=tmp_path, generations=2, **FAST)
    before = files(tmp_path)
    (tmp_path / "generation_01.safetensors").unlink()
    iterate(*toy_latents, folder=tmp_path, generations=2, **FAST)
    assert files(tmp_path) == before


def test_the_table_is_what_the_files_measure(learnt: tuple[Iterated, Path], toy_latents: Data) -> None:
    made, folder = learnt
    assert list(made.health.columns) == list(health.COLUMNS)
    assert made.health["generation"].tolist() == [0, 1]
    assert np.isnan(made.health["agreement"][0])
    z, y, val_z, val_y = toy_latents
    for g, row in made.health.iterrows():
        coder = SimplicialCoder.load(folder / f"generation_{g:02d}.safetensors")
        again = health.measure(coder, z, y, val_z, val_y, seed=3)
        assert {name: row[name] for name in again} == pytest.approx(again, rel=1e-5)


def test_the_planted_findings_are_learnt(learnt: tuple[Iterated, Path], toy_latents: Data) -> None:
    last = learnt[0].health.iloc[-1]
    assert last["val_macro_ap"] > 0.9 > 2 * toy_latents[3].mean()
    assert last["agreement"] > 2 / 4, "twice what chance gives four words"
    assert last["reconstruction_l1"] < 0.6


def test_an_encoder_is_fresh_in_each_generation(
    toy_latents: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student starts from weights of its own, its teacher is the coder the generation before left behind."""
    began: list[torch.Tensor] = []

    def spy(lesson: Lesson, student: SimplicialCoder, teacher: SimplicialCoder, epochs: int, g: int) -> None:
        began.append(student.encoder[0].head.weight.detach().clone())
        assert teacher.digest == SimplicialCoder.load(tmp_path / f"generation_{g - 1:02d}.safetensors").digest
        assert not torch.equal(began[-1], teacher.encoder[0].head.weight)

    monkeypatch.setattr(iterated, "imitate", spy)
    iterate(*toy_latents, folder=tmp_path, generations=3, **FAST)
    assert len(began) == 2
    assert not torch.equal(*began)


def test_nan_labels_are_masked_all_the_way(toy_latents: Data, tmp_path: Path) -> None:
    z, y, val_z, val_y = toy_latents
    holes = np.where(np.random.default_rng(0).random(y.shape) < 0.3, np.nan, y)
    blind = np.stack([holes[:, 0], np.full(len(y), np.nan)], 1)
    table = iterate(z, blind, val_z, val_y, folder=tmp_path, generations=1, **FAST).health
    assert np.isfinite(table.drop(columns="agreement").to_numpy()).all()


def test_progress_is_told(toy_latents: Data, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    iterate(*toy_latents, folder=tmp_path, generations=1, progress=lambda *step: seen.append(step), **FAST)
    assert seen == [("iterated learning", 1, 1)]


@pytest.mark.parametrize("value", [-1.0, 2.0, 0.5])
def test_labels_that_are_not_labels_are_refused(toy_latents: Data, tmp_path: Path, value: float) -> None:
    z, y, val_z, val_y = toy_latents
    with pytest.raises(InputError, match=f"train split: a label is {value:g}"):
        iterate(z, np.full_like(y, value), val_z, val_y, folder=tmp_path, **FAST)
    with pytest.raises(InputError, match="val split: 64 latents but 63 label rows"):
        iterate(z, y, val_z, val_y[1:], folder=tmp_path, **FAST)


def test_another_run_s_folder_is_refused(learnt: tuple[Iterated, Path], toy_latents: Data) -> None:
    with pytest.raises(InputError, match="was made from other latents, labels or settings"):
        iterate(*toy_latents, folder=learnt[1], generations=1, **FAST)


def test_defaults_make_a_sharp_code() -> None:
    """The shipped temperature is one at which even an untrained code is sparse."""
    defaults = {name: p.default for name, p in inspect.signature(iterate).parameters.items()}
    coder = SimplicialCoder(
        4,
        2,
        groups=defaults["groups"],
        vocabulary=defaults["vocabulary"],
        temperature=defaults["temperature"],
        width=16,
    )
    z = torch.randn(32, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert coder.train().code(z).amax(2).mean() > 0.8
