"""Training strategies: stages that sum to the steps, see the rows they should, and move the parts they should."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medlt.classify import train
from medlt.classify.batches import Batches, balanced_indices, pools
from medlt.classify.losses import loss
from medlt.classify.mixup import ClassifierBatch
from medlt.classify.networks import network
from medlt.classify.sets import TrainingSet
from medlt.classify.train import ClassifierSettings, fit_classifier
from medlt.classify.training_strategies import TRAINING_STRATEGIES, Stage, stages
from medlt.files import read_tensors
from medlt.rng import batch_indices, seed_of
from medlt.store import Store
from medlt.training.batches import StepBatches
from medlt.training.runtime import Runtime, silent
from medlt.types import InputError, Progress

FAST: dict[str, Any] = {"steps": 10, "batch_size": 4, "evaluate_every": 5, "patience": 99, "augment": "none"}
NAN = np.nan
STILL = 1e-9
CPU = torch.device("cpu")


def at(folder: Path, seed: int = 0, progress: Progress = silent) -> dict[str, Any]:
    """Where and how a training runs, and where it is kept."""
    return {"runtime": Runtime("cpu", "fp32", None, seed, progress), "store": Store(folder)}


def rows(n: int, prefix: str, grey: int, weight: float = 1.0) -> TrainingSet:
    """Images whose first pixel tells their set, noise elsewhere; finding 0 in half of the rows, finding 1 in one."""
    rng = np.random.default_rng(grey)
    images = rng.integers(0, 256, (n, 1, 32, 32)).astype(np.uint8)
    images[:, 0, 0, 0] = grey
    labels = np.zeros((n, 2), np.float32)
    labels[: n // 2, 0], labels[-1, 1] = 1, 1
    uids = tuple(f"{prefix}{i}" for i in range(n))
    return TrainingSet(torch.from_numpy(images), labels, np.full(n, weight, np.float32), uids)


REAL, ADDED, VAL = rows(12, "r", 10), rows(6, "a", 200, 0.3), rows(8, "v", 30)


def kept(folder: Path) -> list[dict[str, Tensor]]:
    """The weights of all classifiers in a store."""
    return [read_tensors(result / "classifier.safetensors") for result in Store(folder).folders("classifier")]


@given(
    steps=st.integers(2, 3000),
    share=st.none() | st.floats(0.001, 0.999),
    training_strategy=st.sampled_from(list(TRAINING_STRATEGIES)),
)
def test_stages_follow_each_other_and_sum_to_the_steps(steps: int, share: float | None, training_strategy: str) -> None:
    result = stages(training_strategy, steps, last_share=share)
    assert sum(stage.steps for stage in result) == steps
    assert all(stage.steps >= 1 for stage in result)
    assert [stage.start for stage in result] == [0, *np.cumsum([stage.steps for stage in result])[:-1]]
    if len(result) == 2 and share is None:
        assert abs(result[1].steps - TRAINING_STRATEGIES[training_strategy][1] * steps) <= 1


def test_bad_training_strategies_are_refused() -> None:
    with pytest.raises(InputError, match=r"'warm'; choose one of one, drw, crt, head, pretrain, second_stage"):
        stages("warm", 10)
    with pytest.raises(InputError, match="'sqrt'"):
        stages("one", 10, "sqrt")
    with pytest.raises(InputError, match="last_share is 1"):
        stages("crt", 10, last_share=1.0)
    with pytest.raises(InputError, match="1 steps are too few for the 2 stages"):
        stages("drw", 1)


def seen_by(
    training_strategy: str,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    added: TrainingSet | None = ADDED,
    **options: Any,
) -> list[ClassifierBatch]:
    """The batches that a training consumes, in order."""
    seen: list[ClassifierBatch] = []
    inner = train._loss

    def spy(network: Any, resting: Any, of: Any, batch: ClassifierBatch, precision: str) -> Tensor:
        seen.append(batch)
        return inner(network, resting, of, batch, precision)

    with monkeypatch.context() as patch:
        patch.setattr(train, "_loss", spy)
        fit_classifier(
            REAL,
            VAL,
            **at(folder),
            added=added,
            training_strategy=training_strategy,
            **(FAST | {"synthetic_fraction": 0.5} | options),
        )
    return seen


def greys(batch: ClassifierBatch) -> set[int]:
    return set((batch.images[:, 0, 0, 0] * 255).round().int().tolist())


@pytest.mark.parametrize(
    ("training_strategy", "first", "last"),
    [
        ("one", {10, 200}, {10, 200}),
        ("drw", {10, 200}, {10, 200}),
        ("crt", {10, 200}, {10}),
        ("head", {10}, {10, 200}),
        ("pretrain", {200}, {10}),
        ("second_stage", {10}, {10, 200}),
    ],
)
def test_each_stage_sees_its_rows(
    training_strategy: str, first: set[int], last: set[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = seen_by(training_strategy, monkeypatch, tmp_path, last_share=0.5)
    assert len(seen) == 10
    assert set().union(*map(greys, seen[:5])) == first
    assert set().union(*map(greys, seen[5:])) == last
    (record,) = (
        fit_classifier(
            REAL,
            VAL,
            **at(tmp_path),
            added=ADDED,
            training_strategy=training_strategy,
            last_share=0.5,
            synthetic_fraction=0.5,
            **FAST,
        ).record,
    )
    added = sum(int((batch.weights == np.float32(0.3)).sum()) for batch in seen)
    assert record["rows_seen"] == {"real": 40 - added, "added": added}


def test_real_rows_are_those_of_the_plain_arm_at_the_same_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = seen_by("one", monkeypatch, tmp_path, None)
    for training_strategy in ("drw", "second_stage", "pretrain"):
        seen = seen_by(training_strategy, monkeypatch, tmp_path)
        for step, (batch, want) in enumerate(zip(seen, plain, strict=True)):
            real = batch.weights == 1
            assert torch.equal(batch.images[real], want.images[real]), (training_strategy, step)
            assert torch.equal(want.images, REAL.images[batch_indices(12, 4, step, 0, "real")] / 255)


def run(
    training_strategy: str, folder: Path, net: str = "small", seed: int = 0, **options: Any
) -> list[dict[str, Tensor]]:
    """The weights after each stage."""
    chosen = ClassifierSettings(training_strategy=training_strategy, network=net, **(FAST | options))
    runtime, key = Runtime("cpu", "fp32", None, seed), train._key(REAL, VAL, ADDED, chosen, seed)
    training, result = train._Training(REAL, VAL, ADDED, chosen, runtime, "classifier", folder, key, Store(folder)), []
    for number, stage in enumerate(chosen.stages()):
        training.run(number, stage)
        result.append({name: part.clone() for name, part in training.net.state_dict().items()})
    return result


@pytest.mark.parametrize(("training_strategy", "net"), [("crt", "small"), ("crt", "dense"), ("head", "densenet121")])
def test_a_last_stage_on_the_head_leaves_the_body_bit_for_bit(training_strategy: str, net: str, tmp_path: Path) -> None:
    """Its weights and the statistics of its norms."""
    before, after = run(training_strategy, tmp_path, net, steps=4)
    body = [name for name in before if name.startswith("body.")]
    assert any("running_mean" in name for name in body) or net == "dense"
    assert all(torch.equal(before[name], after[name]) for name in body)
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_no_gradient_is_taken_through_a_body_that_rests() -> None:
    net = network("small", 2)
    batch = Batches(REAL, None, Stage(head=True), seed=0, batch_size=4, device=CPU)(0)
    of = loss("plain", torch.from_numpy(REAL.labels))
    train._loss(net.head, net.features, of, batch, "bf16").backward()  # type: ignore[no-untyped-call]
    assert all(part.grad is None for part in net.body.parameters())
    assert all(part.grad is not None for part in net.head.parameters())


def test_other_last_stages_move_everything(tmp_path: Path) -> None:
    before, after = run("drw", tmp_path, steps=8)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) == len(before)


def test_the_head_is_drawn_anew_from_the_seed_of_the_arm(tmp_path: Path) -> None:
    """At next to no learning rate the last stage shows its start: a head like no other seed's."""
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed + 10)
        before = torch.get_rng_state()
        after = run("crt", tmp_path, steps=4, seed=seed, learning_rate=STILL)
        assert torch.equal(torch.get_rng_state(), before)
        assert not torch.allclose(after[0]["head.weight"], after[1]["head.weight"], atol=1e-3)
        assert float(after[1]["head.weight"].abs().max()) <= 256**-0.5 + 1e-6
        heads.append(after[1]["head.weight"])
    assert torch.equal(heads[0], heads[1])
    assert not torch.allclose(heads[0], heads[2], atol=1e-3)


def test_every_arm_of_a_seed_starts_from_the_same_weights(tmp_path: Path) -> None:
    """At next to no learning rate what is kept is the start."""
    want = network("small", 2, seed_of(0, "weights"))
    names = [name for name, _ in want.named_parameters()]
    for options in (
        {},
        {"training_strategy": "drw"},
        {"training_strategy": "second_stage", "mixup": "balanced"},
        {"loss": "logit_adjusted"},
    ):
        fit_classifier(REAL, VAL, **at(tmp_path), added=ADDED, learning_rate=STILL, **options, **(FAST | {"steps": 2}))
    result = kept(tmp_path)
    assert len(result) == 4
    for weights in result:
        for name in names:
            torch.testing.assert_close(weights[name], want.state_dict()[name], atol=1e-6, rtol=0)


def test_the_best_weights_of_a_stage_start_the_next_and_those_of_the_last_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, seen = iter([0.5, 0.9, 0.6, 0.7, 0.2, 0.3]), list[dict[str, Tensor]]()

    def scored(classifier: Any, *_: object) -> float:
        seen.append({name: part.clone() for name, part in classifier.net.state_dict().items()})
        return next(values)

    monkeypatch.setattr(train, "_macro_ap", scored)
    record = fit_classifier(
        REAL, VAL, **at(tmp_path), training_strategy="crt", last_share=0.4, **(FAST | {"evaluate_every": 2})
    ).record
    assert [entry["stage"] for entry in record["history"]] == [0, 0, 0, 1, 1]
    assert [entry["step"] for entry in record["history"]] == [2, 4, 6, 8, 10]
    (weights,) = kept(tmp_path)
    assert record["best_step"] == 8
    for name, part in weights.items():
        assert torch.equal(part, seen[3][name])
        assert not name.startswith("body.") or torch.equal(part, seen[1][name])


def test_early_stopping_ends_a_stage_and_lengthens_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.9, 0.1, 0.1, 0.1, 0.2, 0.3])
    monkeypatch.setattr(train, "_macro_ap", lambda *_: next(values))
    options = FAST | {"steps": 20, "patience": 2, "evaluate_every": 2}
    expected: list[int] = []
    where = at(tmp_path, progress=lambda *step: expected.append(step[1]))
    record = fit_classifier(REAL, VAL, **where, training_strategy="drw", last_share=0.3, **options).record
    assert record["steps_done"] == [6, 6]  # of 14 and 6
    assert [entry["step"] for entry in record["history"]] == [2, 4, 6, 16, 18, 20]
    assert expected == [*range(1, 7), *range(15, 21)]
    assert record["rows_seen"] == {"real": 48, "added": 0}


def test_pretraining_without_added_rows_is_refused(tmp_path: Path) -> None:
    for added in (None, ADDED.take([])):
        with pytest.raises(InputError, match="training_strategy pretrain needs added rows"):
            fit_classifier(REAL, VAL, **at(tmp_path), added=added, training_strategy="pretrain", **FAST)
    assert not list(tmp_path.iterdir())


def test_sampling_by_class_draws_findings_evenly_then_their_rows() -> None:
    labels = np.array([[1, 0, 0]] * 8 + [[1, 1, 0]] * 2 + [[NAN, 0, 0.4], [0, 0, 0]], np.float32)
    groups = pools(labels)
    assert [group.tolist() for group in groups] == [list(range(10)), [8, 9]]
    drawn = np.concatenate([balanced_indices(groups, 50, step, "test") for step in range(200)])
    assert np.array_equal(balanced_indices(groups, 50, 3, "test"), drawn[150:200])
    share = np.bincount(drawn, minlength=12) / len(drawn)
    assert share[:8] == pytest.approx([0.05] * 8, abs=0.01)
    assert share[8:10] == pytest.approx([0.3] * 2, abs=0.02)
    assert (share[10:] == 0).all()


def test_sampling_by_class_is_over_real_rows_in_every_stage() -> None:
    for stage in stages("second_stage", 100, "class_balanced"):
        make = Batches(REAL, None, stage, seed=0, batch_size=200, augment="none", device=CPU)
        rare = make(stage.start).labels[:, 1].mean()
        assert float(rare) == pytest.approx(0.5, abs=0.15)  # 1 row in 12 as they come
    nothing = replace(REAL, labels=np.zeros_like(REAL.labels))
    as_they_come = Batches(nothing, None, Stage(balanced=True), seed=0, batch_size=4, augment="none", device=CPU)(5)
    assert torch.equal(as_they_come.images, REAL.images[batch_indices(12, 4, 5, 0, "real")] / 255)


def test_batches_made_ahead_are_the_same() -> None:
    make = Batches(
        REAL,
        ADDED,
        Stage(),
        seed=1,
        batch_size=8,
        synthetic_fraction=0.5,
        augment="monai",
        mixup="balanced",
        device=CPU,
    )
    with StepBatches(make, 12) as prefetched:
        for step in range(5, 12):
            assert torch.equal(prefetched(step).images, make(step).images)
