"""Training: a function of data and settings, bit for bit; cached by contents; best weights kept; arms alike."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medlt.classify import classifier, train
from medlt.classify.batches import Batches
from medlt.classify.classifier import Clock, in_precision
from medlt.classify.heads import best_tau, tau_normalise
from medlt.classify.latents import load_latent_classifier
from medlt.classify.networks import Network, network
from medlt.classify.private import load_private
from medlt.classify.sets import as_distributions, to_uint8
from medlt.classify.train import Classifier, ClassifierSettings, Pace, TrainingSet, fit_classifier, load_classifier
from medlt.classify.training_strategies import Stage
from medlt.files import digest, write_tensors
from medlt.metrics.ranking import auroc
from medlt.rows import StoredRows
from medlt.store import RECORD, Store
from medlt.training import loop
from medlt.training.checkpoint import Best
from medlt.training.runtime import Runtime
from medlt.types import InputError

FAST: dict[str, Any] = {"steps": 4, "batch_size": 4, "evaluate_every": 2, "patience": 9}
STAGE = Stage()
CPU = torch.device("cpu")


def at(folder: Path, seed: int = 0, threads: int | None = None) -> dict[str, Any]:
    """Where and how a training runs, and where it is kept."""
    return {"runtime": Runtime("cpu", "fp32", threads, seed), "store": Store(folder)}


def batches(real: TrainingSet, added: TrainingSet | None, settings: ClassifierSettings, seed: int = 0) -> Batches:
    names = ("batch_size", "synthetic_fraction", "augment", "mixup", "mixup_alpha")
    return Batches(real, added, STAGE, seed=seed, device=CPU, **{name: getattr(settings, name) for name in names})


def blobs(n: int, seed: int, prefix: str = "u", size: int = 32) -> TrainingSet:
    """Two findings one can see: a bright square on the left, one on the right; some labels unknown."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 2)) < 0.5).astype(np.float32)
    images = rng.integers(0, 60, (n, 1, size, size)).astype(np.uint8)
    for k in range(2):
        images[labels[:, k] == 1, :, 12:20, 4 + 16 * k : 12 + 16 * k] += 120
    labels[rng.random((n, 2)) < 0.1] = np.nan
    weights = np.ones(n, dtype=np.float32)
    return TrainingSet(torch.from_numpy(images), labels, weights, tuple(f"{prefix}{i}" for i in range(n)))


REAL, VAL = blobs(24, 0), blobs(12, 1, "v")


def kept(folder: Path) -> Path:
    """The folder of the only classifier in a store."""
    (result,) = Store(folder).folders("classifier")
    return result


def bytes_in(folder: Path) -> dict[str, bytes]:
    """The files of the only classifier in a store, but for the store's own."""
    return {p.name: p.read_bytes() for p in sorted(kept(folder).iterdir()) if p.name != RECORD}


def test_a_rerun_is_bitwise_equal_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    fit_classifier(REAL, VAL, **at(tmp_path / "a"), **FAST)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    fit_classifier(REAL, VAL, **at(tmp_path / "b"), **FAST)
    fit_classifier(REAL, VAL, **at(tmp_path / "c", 1), **FAST)
    assert bytes_in(tmp_path / "a") == bytes_in(tmp_path / "b")
    assert len(bytes_in(tmp_path / "a")) == 2
    assert set(bytes_in(tmp_path / "a").values()).isdisjoint(bytes_in(tmp_path / "c").values())


def test_a_finished_training_is_read_not_redone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fit_classifier(REAL, VAL, **at(tmp_path), **FAST)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(loop, "fit", never)
    again = fit_classifier(REAL, VAL, **at(tmp_path, threads=1), **FAST)
    assert torch.equal(first.predict(VAL.images), again.predict(VAL.images))
    assert first.record == again.record
    changed = replace(REAL, labels=1 - REAL.labels)
    for data, options in ((REAL, {"learning_rate": 2e-3}), (changed, {})):
        with pytest.raises(AssertionError, match="trained again"):
            fit_classifier(data, VAL, **at(tmp_path), **(FAST | options))


@pytest.mark.parametrize("name", ["classifier.safetensors", "classifier.json"])
def test_a_flipped_byte_is_detected_set_aside_and_made_again(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = fit_classifier(REAL, VAL, **at(tmp_path), **FAST).predict(VAL.images)
    whole, place = bytes_in(tmp_path), kept(tmp_path)
    damaged = bytearray(whole[name])
    damaged[len(damaged) // 2] ^= 1
    (place / name).write_bytes(damaged)
    assert torch.equal(fit_classifier(REAL, VAL, **at(tmp_path), **FAST).predict(VAL.images), first)
    assert bytes_in(tmp_path) == whole
    assert (place.with_suffix(".damaged-1") / name).read_bytes() == damaged
    assert f"{place / name} is damaged" in caplog.text


def test_sets_of_equal_uids_and_labels_but_other_pixels_are_others(tmp_path: Path) -> None:
    darker = replace(REAL, images=REAL.images // 2)
    one, other = (fit_classifier(rows, VAL, **at(tmp_path), **FAST) for rows in (REAL, darker))
    assert one.record["train_digest"] != other.record["train_digest"]
    assert len(Store(tmp_path).folders("classifier")) == 2
    assert not torch.equal(one.predict(VAL.images), other.predict(VAL.images))


def test_a_killed_training_goes_on_from_its_checkpoint_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the second stage: the first is not made again, and rows and history are those of one go."""
    monkeypatch.setattr("medlt.classify.settings.CHECKPOINT", 2)
    options = FAST | {"steps": 12, "training_strategy": "drw", "last_share": 0.5}
    added = blobs(5, 9, "s")
    fit_classifier(REAL, VAL, added=added, **at(tmp_path / "whole"), **options)
    inner, seen = train._loss, list[int]()

    def killed(*parts: Any) -> torch.Tensor:
        seen.append(len(seen))
        if len(seen) == 10:
            raise KeyboardInterrupt
        return inner(*parts)

    monkeypatch.setattr(train, "_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        fit_classifier(REAL, VAL, added=added, **at(tmp_path / "killed"), **options)
    assert not Store(tmp_path / "killed").folders("classifier")
    seen.clear()
    fit_classifier(REAL, VAL, added=added, **at(tmp_path / "killed"), **options)
    assert len(seen) == 4, "steps 9 to 12; the checkpoint is of step 8"
    assert bytes_in(tmp_path / "killed") == bytes_in(tmp_path / "whole")


def test_it_learns_what_can_be_seen(tmp_path: Path) -> None:
    classifier = fit_classifier(
        blobs(200, 2), blobs(40, 3), **at(tmp_path), steps=40, batch_size=16, evaluate_every=20, ema_decay=0.9
    )
    test = blobs(80, 4)
    scores = classifier.predict(test.images).numpy()
    assert all(auroc(test.labels[:, k], scores[:, k]) > 0.9 for k in range(2))


def test_arms_of_one_seed_differ_only_in_the_slots_given_to_added_rows() -> None:
    added = replace(blobs(10, 5, "s"), weights=np.full(10, 0.3, dtype=np.float32))
    settings = ClassifierSettings(batch_size=16, synthetic_fraction=0.25, augment="none")
    shares = []
    for step in range(40):
        plain = batches(REAL, None, settings, 3)(step)
        mixed = batches(REAL, added, settings, 3)(step)
        given = mixed.weights == 0.3
        assert mixed.added == int(given.sum())
        assert torch.equal(plain.images[~given], mixed.images[~given])
        assert torch.equal(plain.labels[~given].nan_to_num(9), mixed.labels[~given].nan_to_num(9))
        assert all(any(torch.equal(image, one / 255) for one in added.images) for image in mixed.images[given])
        shares.append(given.float().mean().item())
    assert np.mean(shares) == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize("options", [{}, {"mixup": "mixup"}, {"mixup": "balanced"}, {"augment": "monai"}])
def test_a_batch_is_a_function_of_seed_and_step(options: dict[str, str]) -> None:
    settings = ClassifierSettings(batch_size=8, **options)
    later = batches(REAL, VAL, settings, 1)(7)
    same = batches(REAL, VAL, settings, 1)
    again = [same(step) for step in (3, 7, 1)][1]
    for name in ("images", "labels", "weights"):
        assert torch.equal(getattr(later, name).nan_to_num(9), getattr(again, name).nan_to_num(9))
    other = batches(REAL, VAL, settings, 2)(7)
    assert not torch.equal(later.images, other.images)


def test_a_batch_may_be_larger_than_the_set(tmp_path: Path) -> None:
    few = REAL.take(REAL.uids[:3])
    classifier = fit_classifier(few, VAL, **at(tmp_path), **(FAST | {"batch_size": 20, "mixup": "balanced"}))
    assert classifier.predict(VAL.images).isfinite().all()
    images = batches(few, None, ClassifierSettings(batch_size=21, augment="none"))(2).images
    assert [sum(torch.equal(image, one / 255) for image in images) for one in few.images] == [7, 7, 7]


def test_an_empty_added_set_is_the_real_arm(tmp_path: Path) -> None:
    fit_classifier(REAL, VAL, **at(tmp_path / "a"), **FAST)
    fit_classifier(REAL, VAL, **at(tmp_path / "b"), added=REAL.take([]), **FAST)
    assert bytes_in(tmp_path / "a") == bytes_in(tmp_path / "b")
    assert kept(tmp_path / "a").name == kept(tmp_path / "b").name


def test_the_best_weights_are_kept_and_patience_ends() -> None:
    """A network that ranks by brightness, its sign turned: macro AP is 1 or the least there is."""

    class Mean(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((1, 2, 3))[:, None]

    def fixed(sign: float) -> Network:
        head = torch.nn.Linear(1, 1, bias=False)
        head.weight.data.fill_(sign)
        return Network(Mean(), head)

    images = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).repeat(1, 1, 4, 4) * 30
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1], dtype=np.float32)[:, None]
    val = TrainingSet(images, labels, np.ones(8, dtype=np.float32), tuple("abcdefgh"))
    best = Best()
    for step, sign in ((1, -1.0), (2, 1.0), (3, 0.5), (4, -1.0)):
        assert best.since < 2
        net = fixed(sign)
        best.rank(train._macro_ap(Classifier(net, 4, {}), val), step, [net.head.weight])
    assert (best.step, best.score, best.since) == (2, 1.0, 2)
    assert float(best.tensors[0]) == 1.0


def test_fit_gives_back_the_best_evaluation_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    def worse_and_worse(_: np.ndarray, scores: np.ndarray) -> float:
        seen.append(scores)
        return 1 / len(seen)

    monkeypatch.setattr(train, "macro_average_precision", worse_and_worse)
    classifier = fit_classifier(REAL, VAL, **at(tmp_path), **(FAST | {"learning_rate": 3e-3}))
    assert (classifier.record["best_step"], len(seen)) == (2, 2)
    np.testing.assert_array_equal(classifier.predict(VAL.images).numpy(), seen[0])
    assert not np.array_equal(seen[0], seen[1])


def test_a_training_that_is_killed_leaves_no_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.files, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            fit_classifier(REAL, VAL, **at(tmp_path / "a"), **FAST)
    assert not Store(tmp_path / "a").folders("classifier")
    fit_classifier(REAL, VAL, **at(tmp_path / "a"), **FAST)
    fit_classifier(REAL, VAL, **at(tmp_path / "b"), **FAST)
    assert bytes_in(tmp_path / "a") == bytes_in(tmp_path / "b")


def test_without_a_val_positive_the_last_weights_are_kept(tmp_path: Path) -> None:
    empty = replace(VAL, labels=np.zeros_like(VAL.labels))
    record = fit_classifier(REAL, empty, **at(tmp_path), **(FAST | {"patience": 1})).record
    assert record["best_step"] == FAST["steps"]
    assert {h["val_macro_ap"] for h in record["history"]} == {None}


def test_the_record_names_what_was_seen(tmp_path: Path) -> None:
    record = fit_classifier(REAL, VAL, **at(tmp_path), added=blobs(5, 9, "s"), **FAST).record
    assert record["train_digest"] == REAL.digest()
    assert record["added_digest"] == blobs(5, 9, "s").digest()
    assert (record["train_rows"], record["added_rows"], record["size"]) == (24, 5, 32)
    assert record["positive"] == np.nansum(REAL.labels, axis=0).tolist()


def test_learning_rate_rises_then_falls_to_nothing() -> None:
    """Of a stage as of the whole; the moving average looks back over the same share of either."""
    for training in (ClassifierSettings(steps=100).training(), ClassifierSettings(steps=500).training(100)):
        rates = [training.lr_factor(step) for step in range(100)]
        assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
        assert rates[10] == pytest.approx(1)
        assert all(a > b for a, b in pairwise(rates[10:]))
        assert rates[-1] < 1e-3
    whole, part = (
        ClassifierSettings(steps=500, ema_decay=0.98).training(),
        ClassifierSettings(steps=500, ema_decay=0.98).training(100, 10.0),
    )
    assert part.ema_decay**100 == pytest.approx(whole.ema_decay**500)
    assert part.learning_rate == pytest.approx(10 * whole.learning_rate)


def test_predictions_do_not_hang_on_the_container(tmp_path: Path) -> None:
    """8 bit, its float, and the same at twice the size give the same probabilities."""
    classifier = fit_classifier(REAL, VAL, **at(tmp_path), **FAST)
    images = VAL.images[:4]
    plain = classifier.predict(images)
    assert plain.shape == (4, 2)
    assert torch.equal(plain, classifier.predict(images.float() / 255 + 0.001))
    assert torch.equal(plain, classifier.predict(images.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    torch.testing.assert_close(plain, classifier.predict(images, chunk=1), atol=5e-3, rtol=0)
    assert torch.equal(load_classifier(kept(tmp_path), "cpu")(images), plain)
    assert classifier.predict(images[:0]).shape == (0, 2)
    assert classifier.predict(torch.full((1, 1, 32, 32), torch.nan)).isfinite().all()


def test_eight_bit_rounds_and_clips() -> None:
    values = torch.tensor([0.0, 0.5, 1.0, -3.0, 7.0, torch.nan, torch.inf]).view(1, 1, 1, 7)
    assert to_uint8(values).flatten().tolist() == [0, 128, 255, 0, 255, 0, 0]


@pytest.mark.parametrize("name", ["small", "densenet121"])
def test_networks_answer_with_a_logit_a_finding(name: str) -> None:
    with torch.no_grad():
        assert network(name, 3).eval()(torch.zeros(2, 1, 64, 64)).shape == (2, 3)


def test_sets_are_aligned_by_uid() -> None:
    taken = REAL.take(["u5", "u2"])
    assert taken.uids == ("u5", "u2")
    assert torch.equal(taken.images[1], REAL.images[2])
    np.testing.assert_array_equal(taken.labels[0], REAL.labels[5])
    assert taken.digest() == REAL.take(["u5", "u2"]).digest() != REAL.take(["u2", "u5"]).digest()


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the first z9"):
        REAL.take(["u1", "z9"])
    with pytest.raises(InputError, match="twice"):
        replace(REAL, uids=("u0",) * 24)
    with pytest.raises(InputError, match="differ in number"):
        replace(REAL, uids=("u0",))
    with pytest.raises(InputError, match="uint8"):
        replace(REAL, images=REAL.images.float())
    with pytest.raises(InputError, match="'resnet'"):
        fit_classifier(REAL, VAL, **at(tmp_path), network="resnet", **FAST)
    with pytest.raises(InputError, match="learning_rate is 0"):
        fit_classifier(REAL, VAL, **at(tmp_path), learning_rate=0, **FAST)
    with pytest.raises(InputError, match="has no readable classifier"):
        load_classifier(tmp_path, "cpu")
    with pytest.raises(TypeError):
        fit_classifier(REAL, VAL, **at(tmp_path), stepz=3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", ["[]", "null", "3", "{}", '{"settings": 1}', '{"settings": {"weights": []}, "positive": 1}', "{"]
)
@pytest.mark.parametrize(
    "load", [load_classifier, load_latent_classifier, partial(load_private, prepare=lambda net: None)]
)
def test_a_record_of_another_shape_is_one_line(tmp_path: Path, text: str, load: Callable[..., Any]) -> None:
    (tmp_path / "classifier.json").write_text(text)
    write_tensors(tmp_path / "classifier.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(InputError, match="classifier"):
        load(tmp_path, device="cpu")


def test_the_head_on_the_features_gives_the_predictions() -> None:
    """Features are those of the images as predictions see them: 8 bit, at the classifier's size."""
    for name, width in (("small", 256), ("dense", 120), ("densenet121", 1024)):
        classifier = Classifier(network(name, 3, seed=1).eval(), 64, {"positive": [1.0] * 3})
        images = torch.rand(3, 1, 96, 96, generator=torch.Generator().manual_seed(0))
        features = classifier.features(images)
        assert features.shape == (3, width)
        assert torch.allclose(classifier.net.head(features).sigmoid(), classifier.predict(images), atol=5e-3)
        assert classifier.features(images[:0]).shape == (0, width)


def one_of_three(n: int, seed: int, prefix: str = "u") -> TrainingSet:
    """A single label: a bright square on the left, the right, or none; in 6, 3 and 1 of 10 rows."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, n, p=[0.6, 0.3, 0.1])
    images = rng.integers(0, 60, (n, 1, 32, 32)).astype(np.uint8)
    for k in range(2):
        images[kind == k, :, 12:20, 4 + 16 * k : 12 + 16 * k] += 120
    uids = tuple(f"{prefix}{i}" for i in range(n))
    return TrainingSet(torch.from_numpy(images), np.eye(3, dtype=np.float32)[kind], np.ones(n, np.float32), uids)


@pytest.mark.parametrize("loss", ["balanced_softmax", "ldam"])
def test_a_single_label_is_learnt_with_a_softmax(tmp_path: Path, loss: str) -> None:
    options = {
        "steps": 40,
        "batch_size": 16,
        "evaluate_every": 20,
        "ema_decay": 0.9,
        "loss": loss,
        "task": "single-label",
    }
    classifier = fit_classifier(one_of_three(200, 2), one_of_three(40, 3), **at(tmp_path), **options)
    test = one_of_three(80, 4)
    scores = classifier.predict(test.images)
    torch.testing.assert_close(scores.sum(1), torch.ones(80))
    assert np.mean(scores.argmax(1).numpy() == test.labels.argmax(1)) > 0.8  # 0.6 are of the first class
    assert torch.equal(load_classifier(kept(tmp_path), "cpu").predict(test.images), scores)


def test_rows_without_exactly_one_label_are_refused(tmp_path: Path) -> None:
    real, val = one_of_three(10, 0), one_of_three(6, 1, "v")
    options = FAST | at(tmp_path) | {"task": "single-label", "loss": "plain"}
    for bad in ([1, 1, 0], [0, 0, 0], [0.5, 0.5, 0]):
        labels = real.labels.copy()
        labels[3] = bad
        with pytest.raises(InputError, match="1 train rows without exactly one positive, the first u3"):
            fit_classifier(replace(real, labels=labels), val, **options)
    with pytest.raises(InputError, match=r"validation rows .* the first v0"):
        fit_classifier(real, replace(val, labels=val.labels * 0), **options)
    added = replace(one_of_three(4, 2, "s"), labels=np.zeros((4, 3), np.float32))
    with pytest.raises(InputError, match="4 added rows without labels that sum to 1, the first s0"):
        fit_classifier(real, val, added=added, **options)
    assert not list(tmp_path.iterdir())
    labels = real.labels.copy()
    labels[3] = np.nan
    soft = replace(added, labels=np.full((4, 3), 1 / 3, np.float32))
    assert fit_classifier(replace(real, labels=labels), val, added=soft, **options).task == "single-label"


def test_soft_labels_of_added_rows_are_divided_by_their_sum(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A fused image holds both parents' findings, with a sum that is not 1."""
    real, val = one_of_three(10, 0), one_of_three(6, 1, "v")
    fused = np.array([[0.9, 0.6, 0], [1, 1, 1], [0, 0.2, 0], [0.5, 0.5, 0], [0, 1, 0], [0, np.nan, 1]], np.float32)
    added = replace(one_of_three(6, 2, "s"), labels=fused)
    divided = as_distributions(added)
    known = ~np.isnan(fused).any(1)
    np.testing.assert_allclose(divided.labels[known], fused[known] / fused[known].sum(1, keepdims=True), atol=1e-7)
    np.testing.assert_array_equal(divided.labels[~known], fused[~known])
    assert as_distributions(divided) is divided
    options = FAST | at(tmp_path) | {"task": "single-label", "loss": "plain"}
    one, other = (fit_classifier(real, val, added=rows, **options) for rows in (added, divided))
    assert torch.equal(one.predict(val.images), other.predict(val.images))
    lines = [record.getMessage() for record in caplog.records]
    assert lines.count("single-label task: the soft labels of 3 added row(s) are divided by their sum") == 1


@pytest.mark.parametrize("kind", ["positive", "negative", "unknown"])
@pytest.mark.parametrize("loss", ["balanced", "class_balanced", "ldam", "logit_adjusted"])
def test_a_fold_of_one_class_trains_to_finite_weights(tmp_path: Path, kind: str, loss: str) -> None:
    labels = REAL.labels.copy()
    labels[:, 1] = {"positive": 1, "negative": 0, "unknown": np.nan}[kind]
    options = FAST | {
        "steps": 2,
        "loss": loss,
        "training_strategy": "drw",
        "sampling": "class_balanced",
        "mixup": "balanced",
    }
    classifier = fit_classifier(replace(REAL, labels=labels), VAL, **at(tmp_path), **options)
    assert all(weights.isfinite().all() for weights in classifier.net.state_dict().values())


def test_the_tau_arm_is_its_plain_twin_but_for_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, val = one_of_three(60, 2), one_of_three(30, 3, "v")
    options = FAST | at(tmp_path) | {"task": "single-label", "loss": "plain"}
    plain = fit_classifier(real, val, **options)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit", lambda *_, **__: pytest.fail("trained again"))
        normed = fit_classifier(real, val, tau_norm=True, **options)
    assert normed.record["tau"] == best_tau(plain.net.head, plain.features(val.images), val.labels)
    assert normed.record["settings"] == plain.record["settings"] | {"tau_norm": True}
    tau_normalise(plain.net.head, normed.record["tau"])
    for name, part in normed.net.state_dict().items():
        assert torch.equal(part, plain.net.state_dict()[name])
    multi = fit_classifier(REAL, VAL, **at(tmp_path), tau_norm=True, **FAST)
    assert multi.record["tau"] is None
    assert torch.equal(multi.predict(VAL.images), fit_classifier(REAL, VAL, **at(tmp_path), **FAST).predict(VAL.images))


def test_a_training_tells_its_pace_and_a_reading_none(tmp_path: Path) -> None:
    pace = fit_classifier(REAL, VAL, **at(tmp_path), **FAST).pace
    assert pace is not None
    assert pace.images_per_second > 1
    assert 0 < pace.busy < 1
    assert fit_classifier(REAL, VAL, **at(tmp_path), **FAST).pace is None


def test_the_pace_leaves_evaluations_out_and_counts_what_was_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 images in 20 s, of which 10 s went into evaluations and 2 s into waiting: 10 a second, busy 8 of 10."""
    times = iter([0.0, 1.0, 3.0, 5.0, 15.0, 20.0])
    monkeypatch.setattr(classifier, "perf_counter", lambda: next(times))
    clock = Clock()
    with clock.on("waiting"):
        pass
    with clock.on("evaluating"):
        pass
    clock.images = 100
    assert clock.pace() == Pace(10.0, 0.8)


def test_every_setting_is_part_of_the_key_and_of_the_record(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"mixup": "mixup"},
        {"augment": "none"},
        {"training_strategy": "drw"},
        {"loss": "focal"},
    ]
    changes += [{"sampling": "class_balanced"}, {"mixup": "mixup", "mixup_alpha": 0.4}]
    keys = [train._key(REAL, VAL, None, ClassifierSettings(**change), 0) for change in changes]
    keys += [train._key(REAL, VAL, None, ClassifierSettings(), 1), train._key(REAL, VAL, VAL, ClassifierSettings(), 0)]
    assert len({digest(key) for key in keys}) == len(keys)
    assert train._key(REAL, VAL, None, ClassifierSettings(augment=True), 0) == keys[0]
    assert ClassifierSettings(augment=True) == ClassifierSettings()
    assert ClassifierSettings(augment=False) == ClassifierSettings(augment="none")
    record = fit_classifier(REAL, VAL, **at(tmp_path), training_strategy="drw", **FAST).record
    assert record["settings"] == asdict(ClassifierSettings(training_strategy="drw", **FAST))
    assert record["steps_done"] == [3, 1]
    assert record["rows_seen"] == {"real": 16, "added": 0}
    assert json.loads((kept(tmp_path) / "classifier.json").read_text()) == record


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"task": "ordinal"}, "multi-label, single-label"),
        ({"loss": "asymmetric", "task": "single-label"}, "'asymmetric' for the single-label task"),
        ({"training_strategy": "warm"}, "no training_strategy is named 'warm'"),
        ({"mixup": "cutmix"}, "one of none, mixup, balanced"),
        ({"augment": "flip"}, "one of light, none, monai"),
        ({"sampling": "sqrt"}, "one of instance, class_balanced"),
        ({"synthetic_fraction": 1.5}, "synthetic_fraction 1.5"),
        ({"mixup_alpha": 0.0}, "mixup_alpha 0.0"),
        ({"tau_norm": True, "loss": "ldam"}, "remove one of them"),
    ],
)
def test_settings_that_do_not_exist_or_go_together_are_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        ClassifierSettings(**options)


def test_sets_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    for real, added in ((REAL, blobs(4, 1, "s", 64)), (one_of_three(9, 0), blobs(4, 1, "s"))):
        with pytest.raises(InputError, match="rows differ"):
            fit_classifier(real, VAL, **at(tmp_path), added=added, **FAST)
    with pytest.raises(InputError, match="no train row"):
        fit_classifier(REAL.take([]), VAL, **at(tmp_path), **FAST)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("side", [8, 16, 24])
def test_gradients_of_small_images_have_no_numbers_of_uninitialised_memory(side: int) -> None:
    """torch 2.13 in bfloat16 on a CPU with AMX: a 3x3 convolution of one pixel."""
    net, images = (
        network("small", 2, 3).train(),
        torch.rand(4, 1, side, side, generator=torch.Generator().manual_seed(1)),
    )

    def gradients() -> list[Tensor]:
        net.zero_grad()
        poison = [torch.full((size,), torch.nan) for size in range(1000, 400_000, 20_000)]
        del poison
        return list(torch.autograd.grad(in_precision(net, images).square().mean(), list(net.parameters())))

    first = gradients()
    for _ in range(4):
        assert all(torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))


def test_images_that_stay_on_disk_give_the_same_classifier(tmp_path: Path) -> None:
    def on_disk(rows: TrainingSet, name: str) -> TrainingSet:
        np.save(tmp_path / f"{name}.npy", np.asarray(rows.images[:]))

        def read(numbers: np.ndarray) -> Tensor:
            return torch.from_numpy(np.load(tmp_path / f"{name}.npy", mmap_mode="r")[numbers])

        names, numbers = [f"{name} {uid}" for uid in rows.uids], np.arange(len(rows))
        return replace(rows, images=StoredRows(read, names, (1, 32, 32), torch.uint8, numbers))

    fit_classifier(REAL, VAL, **at(tmp_path / "a"), **FAST)
    real, val = on_disk(REAL, "real"), on_disk(VAL, "val")
    fit_classifier(real, val, **at(tmp_path / "b"), **FAST)
    assert bytes_in(tmp_path / "a")["classifier.safetensors"] == bytes_in(tmp_path / "b")["classifier.safetensors"]
    loaded = replace(real, images=real.images.loaded())  # type: ignore[union-attr]
    assert loaded.digest() == real.digest() != replace(real, images=real.images[:]).digest()
    some = real.take(["u3", "u1"])
    assert torch.equal(some.images[:], REAL.images[[3, 1]])
    assert some.digest() == on_disk(REAL, "real").take(["u3", "u1"]).digest() != real.take(["u1", "u3"]).digest()
