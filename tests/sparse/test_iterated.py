"""The loop: exact resume, honest table, generations that differ, refusals."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from medlt.rows import StoredRows
from medlt.sparse import code_metrics, collapse, iterated, phases
from medlt.sparse.embedding import SimplicialCoder
from medlt.sparse.iterated import FILE, Iterated, iterate
from medlt.sparse.phases import TrainingSetup
from medlt.store import RECORD, Store
from medlt.training.runtime import Runtime, silent
from medlt.types import InputError, Progress

Data = tuple[torch.Tensor, np.ndarray, torch.Tensor, np.ndarray]
FAST: dict[str, Any] = {
    "groups": 2, "vocabulary": 4, "temperature": 0.2, "imitation_epochs": 1, "adaptation_epochs": 1,
    "interaction_epochs": 2, "width": 4, "batch_size": 16, "learning_rate": 5e-3,
}  # fmt: skip


@pytest.fixture(scope="session")
def few(toy_latents: Data) -> Data:
    """A third of the planted collection: four steps an epoch."""
    z, y, val_z, val_y = toy_latents
    return z[:64], y[:64], val_z, val_y


def at(folder: Path, seed: int = 0, progress: Progress = silent, contents: str = "planted train") -> dict[str, Any]:
    """Where and how a code is learnt, from what, and where it is kept."""
    runtime = Runtime("cpu", "fp32", None, seed, progress)
    return {"runtime": runtime, "store": Store(folder), "contents": contents, "val_contents": "planted val"}


def generations(folder: Path) -> list[Path]:
    """The generations in a store, in their order, retries after what they repeat."""
    keys = {one: json.loads((one / RECORD).read_text())["key"] for one in Store(folder).folders("sparse")}
    return sorted(keys, key=lambda one: (keys[one]["generation"], keys[one].get("retry", 0)))


def files(folder: Path) -> list[tuple[str, bytes]]:
    """The generations in a store: their digests, and their coders' bytes."""
    return [(one.name, (one / FILE).read_bytes()) for one in generations(folder)]


def test_a_run_of_more_generations_begins_with_those_of_fewer(few: Data, tmp_path: Path) -> None:
    whole = iterate(*few, **at(tmp_path / "whole"), generations=3, **FAST)
    iterate(*few, **at(tmp_path / "stopped"), generations=2, **FAST)
    kept = (generations(tmp_path / "stopped")[1] / FILE).stat().st_mtime_ns
    resumed = iterate(*few, **at(tmp_path / "stopped"), generations=3, **FAST)
    assert (generations(tmp_path / "stopped")[1] / FILE).stat().st_mtime_ns == kept, "made once"
    assert files(tmp_path / "whole") == files(tmp_path / "stopped")
    assert len(files(tmp_path / "whole")) == 3
    pd.testing.assert_frame_equal(whole.metrics, resumed.metrics)
    assert whole.coder.digest == resumed.coder.digest


def test_a_generation_killed_in_a_phase_goes_on_to_the_same_bytes(
    few: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "CHECKPOINT", 3)
    iterate(*few, **at(tmp_path / "whole"), generations=2, **FAST)
    inner, seen = phases.masked_bce, list[int]()

    def killed(*parts: torch.Tensor) -> torch.Tensor:
        seen.append(len(seen))
        if len(seen) == 8 + 4 + 7:  # interaction, adaptation, and in the second epoch of the second interaction
            raise KeyboardInterrupt
        return inner(*parts)

    monkeypatch.setattr(phases, "masked_bce", killed)
    with pytest.raises(KeyboardInterrupt):
        iterate(*few, **at(tmp_path / "killed"), generations=2, **FAST)
    assert len(generations(tmp_path / "killed")) == 1
    seen.clear()
    iterate(*few, **at(tmp_path / "killed"), generations=2, **FAST)
    assert len(seen) == 8 - 6, "from the checkpoint at step 6 of 8"
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_flipped_byte_is_found_set_aside_and_made_again(
    few: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = iterate(*few, **at(tmp_path), generations=2, **FAST)
    before, place = files(tmp_path), generations(tmp_path)[0]
    damaged = before[0][1][:-100] + bytes([before[0][1][-100] ^ 1]) + before[0][1][-99:]
    (place / FILE).write_bytes(damaged)
    again = iterate(*few, **at(tmp_path), generations=2, **FAST)
    assert again.coder.digest == first.coder.digest
    assert files(tmp_path) == before
    assert (place.with_suffix(".damaged-1") / FILE).read_bytes() == damaged
    assert f"{place / FILE} is damaged" in caplog.text


def test_other_latents_of_the_same_labels_are_another_code(few: Data, tmp_path: Path) -> None:
    """All of them count, not some: the caller names them whole."""
    z, y, val_z, val_y = few
    other = z.clone()
    other[1] += 1
    one = iterate(z, y, val_z, val_y, **at(tmp_path), generations=1, **FAST)
    two = iterate(other, y, val_z, val_y, **at(tmp_path, contents="others"), generations=1, **FAST)
    three = iterate(z, 1 - y, val_z, val_y, **at(tmp_path), generations=1, **FAST)
    four = iterate(z, y, val_z, val_y, **at(tmp_path, seed=1), generations=1, **FAST)
    assert len({found.coder.digest for found in (one, two, three, four)}) == 4
    assert len(Store(tmp_path).folders("sparse")) == 4


def test_a_lost_generation_is_made_again_the_same(few: Data, tmp_path: Path) -> None:
    iterate(*few, **at(tmp_path), generations=2, **FAST)
    before = files(tmp_path)
    shutil.rmtree(generations(tmp_path)[1])
    iterate(*few, **at(tmp_path), generations=2, **FAST)
    assert files(tmp_path) == before


def test_the_table_is_what_the_files_measure(learnt: tuple[Iterated, Path], toy_latents: Data) -> None:
    made, folder = learnt
    assert list(made.metrics.columns) == list(code_metrics.COLUMNS)
    assert made.metrics["generation"].tolist() == [0, 1]
    assert np.isnan(made.metrics["agreement"][0])
    z, y, val_z, val_y = toy_latents
    for g, row in made.metrics.iterrows():
        coder = SimplicialCoder.load(generations(folder)[int(str(g))] / FILE)
        again = code_metrics.measure(coder, z, y, val_z, val_y, seed=3)
        assert {name: row[name] for name in again} == pytest.approx(again, rel=1e-5)


def test_the_planted_findings_are_learnt(learnt: tuple[Iterated, Path], toy_latents: Data) -> None:
    last = learnt[0].metrics.iloc[-1]
    assert last["val_macro_ap"] > 0.9 > 2 * toy_latents[3].mean()
    assert last["agreement"] > 2 / 4, "twice what chance gives four words"
    assert last["reconstruction_l1"] < 0.6


def test_an_encoder_is_fresh_in_each_generation(few: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student starts from weights of its own, its teacher is the coder the generation before left behind."""
    began: list[torch.Tensor] = []

    def spy(
        setup: TrainingSetup, student: SimplicialCoder, teacher: SimplicialCoder, epochs: int, g: int, folder: Path
    ) -> None:
        began.append(student.encoder[0].head.weight.detach().clone())
        assert teacher.digest == SimplicialCoder.load(generations(tmp_path)[g - 1] / FILE).digest
        assert not torch.equal(began[-1], teacher.encoder[0].head.weight)

    monkeypatch.setattr(iterated, "imitate", spy)
    monkeypatch.setattr(collapse, "problem", lambda *row: "")  # with 64 rows AP is noise
    iterate(*few, **at(tmp_path), generations=3, **FAST)
    assert len(began) == 2
    assert not torch.equal(*began)


Interact = Callable[..., None]


@pytest.fixture
def collapsing(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[tuple[int, bool]]], list[tuple[int, bool, bool]]]:
    """Make the given (generation, is a retry) end with one token; tell what was trained: also whether by a teacher."""
    real_interact: Interact = iterated.interact
    real_imitate: Interact = iterated.imitate
    trained, taught = list[tuple[int, bool, bool]](), set[int]()

    def imitate(setup: TrainingSetup, student: SimplicialCoder, teacher: SimplicialCoder, *rest: Any) -> None:
        assert code_metrics.read_code(teacher, setup.latents[:32])[0]["tokens_used"] > 1.01, "a collapsed teacher"
        taught.add(id(student))
        real_imitate(setup, student, teacher, *rest)

    def collapse(where: set[tuple[int, bool]]) -> list[tuple[int, bool, bool]]:
        def interact(
            setup: TrainingSetup, coder: SimplicialCoder, epochs: int, patience: int, g: int, *rest: Any
        ) -> None:
            real_interact(setup, coder, epochs, patience, g, *rest)
            trained.append((g, setup.seed != 0, id(coder) in taught))
            if (g, setup.seed != 0) in where:
                norm: Any = coder.encoder[1]
                norm.running_mean.view(coder.groups, -1)[:, 0] = -1e3

        monkeypatch.setattr(iterated, "interact", interact)
        monkeypatch.setattr(iterated, "imitate", imitate)
        return trained

    return collapse


def test_a_collapsed_generation_is_neither_returned_nor_a_teacher(
    few: Data, tmp_path: Path, collapsing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trained = collapsing({(1, False), (1, True)})
    two = iterate(*few, **at(tmp_path), generations=2, **FAST)
    assert trained == [(0, False, False), (1, False, True), (1, True, True)]
    assert two.coder.digest == SimplicialCoder.load(generations(tmp_path)[0] / FILE).digest
    assert two.metrics[["generation", "retry"]].to_numpy().tolist() == [[0, 0], [1, 0], [1, 1]]
    assert two.metrics["collapsed"].tolist() == [False, True, True]
    assert two.metrics["chosen"].tolist() == [True, False, False]
    assert two.metrics["tokens_used"][1] == 1
    (line,) = caplog.messages
    assert "generation 1 collapsed (1 of 4 tokens in use), and again with another seed; generation 0 is used" in line
    before = files(tmp_path)
    three = iterate(*few, **at(tmp_path), generations=3, **FAST)
    assert trained[3:] == [(2, False, True)], "what is finished is not trained again"
    assert files(tmp_path)[:3] == before
    assert three.metrics["collapsed"].tolist() == [False, True, True, False]
    assert three.chosen["tokens_used"] > 1.1


def test_a_retry_is_deterministic_and_may_be_returned(
    few: Data, tmp_path: Path, collapsing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    collapsing({(0, False)})
    first = iterate(*few, **at(tmp_path / "a"), generations=1, **FAST)
    assert first.metrics["chosen"].tolist() == [False, True]
    assert first.chosen["retry"] == 1
    collapse, seen = iterated.interact, list[int]()

    def killed(setup: TrainingSetup, coder: SimplicialCoder, *rest: Any) -> None:
        seen.append(setup.seed)
        if len(seen) == 2:
            raise KeyboardInterrupt
        collapse(setup, coder, *rest)

    monkeypatch.setattr(iterated, "interact", killed)
    with pytest.raises(KeyboardInterrupt):
        iterate(*few, **at(tmp_path / "b"), generations=1, **FAST)
    again = iterate(*few, **at(tmp_path / "b"), generations=1, **FAST)
    assert len(set(seen)) == 2
    assert seen[1] == seen[2], "the seed of the retry is the same after a kill"
    assert files(tmp_path / "a") == files(tmp_path / "b")
    pd.testing.assert_frame_equal(first.metrics, again.metrics)


def test_without_a_teacher_a_generation_starts_as_the_first(few: Data, tmp_path: Path, collapsing: Any) -> None:
    trained = collapsing({(0, False), (0, True)})
    found = iterate(*few, **at(tmp_path), generations=2, **FAST)
    assert trained == [(0, False, False), (0, True, False), (1, False, False)]
    assert found.chosen["generation"] == 1
    assert np.isnan(found.chosen["agreement"])


def test_if_all_generations_collapse_the_message_says_what_to_change(
    few: Data, tmp_path: Path, collapsing: Any
) -> None:
    collapsing({(0, False), (0, True)})
    with pytest.raises(InputError, match=r"collapsed in every generation \(1 of 4 tokens.*lower sparse.learning_rate"):
        iterate(*few, **at(tmp_path), generations=1, **FAST)


def test_nan_labels_are_masked_all_the_way(few: Data, tmp_path: Path) -> None:
    z, y, val_z, val_y = few
    holes = np.where(np.random.default_rng(0).random(y.shape) < 0.3, np.nan, y)
    blind = np.stack([holes[:, 0], np.full(len(y), np.nan)], 1)
    table = iterate(z, blind, val_z, val_y, **at(tmp_path), generations=1, **FAST).metrics
    assert np.isfinite(table.drop(columns="agreement").to_numpy(float)).all()


def test_progress_is_told(few: Data, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    iterate(*few, **at(tmp_path, progress=lambda *step: seen.append(step)), generations=1, **FAST)
    assert seen == [("iterated learning", 1, 1)]


@pytest.mark.parametrize("value", [-1.0, 2.0, 0.5])
def test_labels_that_are_not_labels_are_refused(few: Data, tmp_path: Path, value: float) -> None:
    z, y, val_z, val_y = few
    with pytest.raises(InputError, match=f"train split: a label is {value:g}"):
        iterate(z, np.full_like(y, value), val_z, val_y, **at(tmp_path), **FAST)
    with pytest.raises(InputError, match="val split: 64 latents but 63 label rows"):
        iterate(z, y, val_z, val_y[1:], **at(tmp_path), **FAST)


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


def test_latents_that_stay_on_disk_give_the_same_code(few: Data, tmp_path: Path) -> None:
    z, y, val_z, val_y = few
    most: list[int] = []

    def on_disk(latents: torch.Tensor, name: str) -> StoredRows:
        np.save(tmp_path / f"{name}.npy", latents.numpy())

        def read(numbers: np.ndarray) -> torch.Tensor:
            most.append(len(numbers))
            return torch.from_numpy(np.load(tmp_path / f"{name}.npy", mmap_mode="r")[numbers])

        names, numbers = [str(i) for i in range(len(latents))], np.arange(len(latents))
        return StoredRows(read, names, tuple(latents.shape[1:]), torch.float32, numbers)

    iterate(*few, **at(tmp_path / "memory"), generations=2, **FAST)
    iterate(on_disk(z, "train"), y, on_disk(val_z, "val"), val_y, **at(tmp_path / "disk"), generations=2, **FAST)
    assert files(tmp_path / "memory") == files(tmp_path / "disk")
    assert max(most) <= code_metrics.CHUNK, "never the whole collection"
