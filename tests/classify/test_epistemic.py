"""The epistemic head: statistics against their closed forms, the classifier untouched, more doubt far from the data."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medlt.classify import epistemic
from medlt.classify.epistemic import Epistemic, Members, fit_epistemic, masked_bce, weights_digest
from medlt.classify.networks import Network, network
from medlt.classify.sets import TrainingSet
from medlt.classify.train import Classifier
from medlt.classify.uncertainty import STATISTICS, statistic
from medlt.diffusion.batching import fixed_batches
from medlt.files import digest_tensors, tensor_bytes
from medlt.store import Store
from medlt.training.runtime import Runtime
from medlt.types import InputError

SIZE, FINDINGS = 32, 2
FAST: dict[str, Any] = {"members": 4, "hidden": 8, "steps": 5, "batch_size": 16}


def toy(n: int = 40, seed: int = 0) -> TrainingSet:
    """A bright square left or right, one finding each; a tenth of the labels unknown."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, FINDINGS)) < 0.5).astype(np.float32)
    images = rng.integers(0, 60, (n, 1, SIZE, SIZE)).astype(np.uint8)
    for k in range(FINDINGS):
        images[labels[:, k] == 1, :, 12:20, 4 + 16 * k : 12 + 16 * k] += 120
    labels[rng.random((n, FINDINGS)) < 0.1] = np.nan
    return TrainingSet(torch.from_numpy(images), labels, np.ones(n, np.float32), tuple(f"u{i}" for i in range(n)))


def toy_classifier(seed: int = 0) -> Classifier:
    return Classifier(network("small", FINDINGS, seed), SIZE, {})


def at(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Where and how a training runs, and where it is kept."""
    return {"runtime": Runtime("cpu", "fp32", None, seed), "store": Store(folder)}


def fitted(folder: Path, seed: int = 0, **changed: Any) -> Epistemic:
    return fit_epistemic(toy_classifier(), toy(), **at(folder, seed), **(FAST | changed))


def oracle(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entropy of the mean and mutual information of members' probabilities [M,B,K], nats."""

    def h(q: np.ndarray) -> np.ndarray:
        return -(q * np.log(q + 1e-12) + (1 - q) * np.log(1 - q + 1e-12))

    return h(p.mean(0)), h(p.mean(0)) - h(p).mean(0)


LOGITS = arrays(np.float64, (5, 3, 2), elements=st.floats(-12, 12))


@given(LOGITS)
@settings(max_examples=50)
def test_statistics_are_their_formulas(logits: np.ndarray) -> None:
    base, members = torch.from_numpy(logits[0]), torch.from_numpy(logits)
    p = 1 / (1 + np.exp(-logits))
    result = {name: one(base, members).numpy() for name, one in STATISTICS.items()}
    np.testing.assert_allclose(result["bald"], oracle(p)[1], atol=1e-9)
    np.testing.assert_allclose(result["entropy"], oracle(p[:1])[0], atol=1e-9)
    np.testing.assert_allclose(result["variance"], ((logits - logits.mean(0)) ** 2).mean(0), atol=1e-9)
    np.testing.assert_allclose(result["margin"], 1 - np.abs(2 * p[0] - 1), atol=1e-9)
    np.testing.assert_allclose(result["energy"], np.log(1 - p[0]), rtol=1e-4, atol=1e-4)


def test_closed_forms() -> None:
    """Agreeing members: no disagreement. Half sure of yes, half of no: one bit. Both hold where floats saturate."""
    for level in (-50.0, -1.0, 0.0, 50.0):
        agreeing = torch.full((8, 1, 1), level)
        assert STATISTICS["bald"](agreeing[0], agreeing).item() == pytest.approx(0, abs=1e-6)
        assert STATISTICS["variance"](agreeing[0], agreeing).item() == 0
    split = torch.tensor([-200.0, 200.0]).view(2, 1, 1).requires_grad_()
    value = STATISTICS["bald"](split[0], split)
    assert value.item() == pytest.approx(math.log(2), abs=1e-6)
    (slope,) = torch.autograd.grad(value.sum(), split)
    assert bool(slope.isfinite().all())
    mild = torch.tensor([-1.0, 1.0]).view(2, 1, 1)
    assert 0 < STATISTICS["bald"](mild[0], mild).item() < math.log(2)
    assert STATISTICS["entropy"](torch.zeros(1), mild).item() == pytest.approx(math.log(2))
    assert STATISTICS["margin"](torch.zeros(1), mild).item() == 1
    assert STATISTICS["energy"](torch.zeros(1), mild).item() == pytest.approx(-math.log(2))


def test_the_largest_total_energy_is_that_nothing_is_there() -> None:
    """Why energy is climbed for the target finding only: over all findings it asks for an empty image."""
    levels = torch.linspace(-6, 6, 25)
    total = STATISTICS["energy"](levels[:, None].expand(-1, 3), torch.zeros(2, 25, 3)).sum(1)
    assert bool((total.diff() < 0).all())


def test_the_members_loss_against_a_double_loop() -> None:
    rng = np.random.default_rng(0)
    logits, labels, pulls = rng.normal(size=(3, 4, 2)), rng.random((4, 2)), rng.poisson(1.0, (3, 4)).astype(float)
    labels[0, 1] = labels[2, 0] = np.nan
    total = 0.0
    for m, b, k in np.ndindex(3, 4, 2):
        if not np.isnan(labels[b, k]):
            p = 1 / (1 + math.exp(-logits[m, b, k]))
            total -= pulls[m, b] * (labels[b, k] * math.log(p) + (1 - labels[b, k]) * math.log(1 - p))
    result = masked_bce(*(torch.from_numpy(part) for part in (logits, labels, pulls)))
    assert result.item() == pytest.approx(total / 6)


def test_members_side_by_side_are_what_each_is_alone() -> None:
    """g_m(h) + beta p_m(h) of standardised features, a member at a time; priors differ and are not trained."""
    members = Members(3, 6, 5, FINDINGS, 2.5, 1)
    features = torch.randn(7, 6, generator=torch.Generator().manual_seed(2)) * 3 + 1
    members.mean, members.sd = features.mean(0), features.std(0)
    h = (features - features.mean(0)) / features.std(0)
    result = members(features)
    for m in range(3):
        g = (h @ members.g_w1[m]).relu() @ members.g_w2[m]
        p = (h @ members.p_w1[m]).relu() @ members.p_w2[m]
        torch.testing.assert_close(result[m], g + 2.5 * p)
        assert p.abs().sum() > 0
    assert {name for name, _ in members.named_parameters()} == {"g_w1", "g_w2", "g_b1", "g_b2"}
    assert not torch.equal(members.p_w1[0], members.p_w1[1])


def test_nothing_is_learnt_from_a_row_whose_labels_are_unknown() -> None:
    features = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    labels, pulls = torch.ones(6, FINDINGS), torch.ones(3, 6)
    labels[:2] = torch.nan
    slopes = []
    for moved in (0.0, 5.0):
        members = Members(3, 8, 4, FINDINGS, 1.0, 0)
        seen = torch.cat([features[:2] + moved, features[2:]])
        loss = masked_bce(members(seen), labels, pulls)
        slopes.append(torch.autograd.grad(loss, [members.g_w1, members.g_w2]))
    for one, other in zip(*slopes, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, other)


def test_the_classifier_is_bit_for_bit_what_it_was(tmp_path: Path) -> None:
    classifier, images = toy_classifier(), toy(12, 3).images
    weights = {name: tensor_bytes(value) for name, value in classifier.net.state_dict().items()}
    flags = [weight.requires_grad for weight in classifier.net.parameters()]
    before = tensor_bytes(classifier.predict(images))
    head = fit_epistemic(classifier, toy(), **at(tmp_path), **FAST)
    seen = (images.float() / 255).requires_grad_()
    torch.autograd.grad(head.logits(seen).var(0).sum(), seen)
    assert {name: tensor_bytes(value) for name, value in classifier.net.state_dict().items()} == weights
    assert [weight.requires_grad for weight in classifier.net.parameters()] == flags
    assert all(weight.grad is None for weight in classifier.net.parameters())
    assert tensor_bytes(classifier.predict(images)) == before


def test_base_logits_are_the_classifiers_and_members_scatter_round_them(tmp_path: Path) -> None:
    head, images = fitted(tmp_path), toy(6, 5).images.float() / 255
    base, members = head(images)
    assert base.shape == (6, FINDINGS)
    assert members.shape == (4, 6, FINDINGS)
    assert torch.equal(head.logits(images), members)
    torch.testing.assert_close(base.sigmoid(), toy_classifier().predict(images), atol=0.02, rtol=0)  # bfloat16 there
    wide = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(head(wide)[0], base)
    assert members.std(0).min() > 0


def test_the_gradient_in_the_image_is_the_slope(tmp_path: Path) -> None:
    """Central differences along one direction, in double precision, of every statistic."""
    head = fitted(tmp_path)
    head.net.double(), head.members.double()
    image = (toy(1, 7).images.double() / 255).requires_grad_()
    way = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).double()
    for name, value in STATISTICS.items():
        (g,) = torch.autograd.grad(value(*head(image)).sum(), image)
        up, down = (value(*head(image.detach() + step * way)).sum() for step in (1e-7, -1e-7))
        assert (g * way).sum().item() == pytest.approx((up - down).item() / 2e-7, rel=1e-3), name


def test_a_row_keeps_its_bytes_in_any_company(tmp_path: Path) -> None:
    head, images = fitted(tmp_path), toy(9, 8).images.float() / 255

    def slope(rows: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            rows = rows.detach().requires_grad_()
            (g,) = torch.autograd.grad(STATISTICS["bald"](*head(rows)).sum(), rows)
        return g

    together = fixed_batches(slope)(images)
    assert together.abs().sum() > 0
    for i in (0, 5, 8):
        assert torch.equal(fixed_batches(slope)(images[i : i + 1])[0], together[i])


def test_score_is_the_statistic_in_pieces(tmp_path: Path) -> None:
    head, images = fitted(tmp_path), toy(10, 9).images
    whole = head.score(images, "variance", chunk=64)
    torch.testing.assert_close(head.score(images, "variance", chunk=3), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head.score(images.float() / 255, "variance"), whole, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="no statistic named 'doubt'"):
        statistic("doubt")


def test_a_finished_head_is_read_not_trained_and_another_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fitted(tmp_path)
    state = torch.get_rng_state()
    other = fitted(tmp_path, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.digest != other.digest
    assert digest_tensors(fitted(tmp_path / "again").members.state_dict()) == digest_tensors(first.members.state_dict())

    def never(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(epistemic, "_trained", never)
    again = fitted(tmp_path)
    assert again.digest == first.digest
    images = toy(5, 2).images
    assert torch.equal(again.score(images, "bald"), first.score(images, "bald"))
    for changed in ({"beta": 2.0}, {"seed": 2}):
        with pytest.raises(AssertionError, match="trained again"):
            fitted(tmp_path, **changed)
    with pytest.raises(AssertionError, match="trained again"):
        fit_epistemic(toy_classifier(1), toy(), **at(tmp_path), **FAST)


def test_a_flipped_byte_is_detected_set_aside_and_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = fitted(tmp_path)
    (place,) = Store(tmp_path).folders("epistemic")
    weights = place / "epistemic.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    assert fitted(tmp_path).digest == first.digest
    assert weights.read_bytes() == whole
    assert f"{weights} is damaged" in caplog.text


def test_a_head_is_refused_by_another_classifier(tmp_path: Path) -> None:
    fitted(tmp_path)
    (place,) = Store(tmp_path).folders("epistemic")
    with pytest.raises(InputError, match="another classifier"):
        epistemic.load_epistemic(place, toy_classifier(1), "cpu")
    wide = replace(toy(), labels=np.zeros((40, 3), np.float32))
    with pytest.raises(InputError, match="has 2 findings, the labels 3"):
        fit_epistemic(toy_classifier(), wide, **at(tmp_path))
    with pytest.raises(InputError, match="1 members cannot disagree"):
        fitted(tmp_path, members=1)
    assert weights_digest(toy_classifier().net) != weights_digest(toy_classifier(1).net)


def test_bootstrap_weights_are_poisson_a_function_of_the_uid_and_of_the_rows_weight() -> None:
    rows = toy(4000)
    pulls = epistemic._bootstrap(rows, 8, 0)
    assert pulls.mean() == pytest.approx(1, abs=0.03)
    assert pulls.var() == pytest.approx(1, abs=0.05)
    some = rows.take(["u7", "u3"])
    assert np.array_equal(epistemic._bootstrap(some, 8, 0), pulls[:, [7, 3]])
    half = replace(some, weights=np.full(2, 0.5, np.float32))
    assert np.array_equal(epistemic._bootstrap(half, 8, 0), 0.5 * pulls[:, [7, 3]])


class Flat(torch.nn.Module):
    """Features of an image of two pixels: its two values."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :2]


@pytest.mark.parametrize("seed", range(3))
def test_doubt_is_larger_far_from_the_training_data(tmp_path: Path, seed: int) -> None:
    """Two clouds of points on a plane, a line between them: members agree on the clouds, not far behind them."""
    rng = np.random.default_rng(seed)
    y = rng.random(400) < 0.5
    points = rng.normal(110, 8, (400, 2)) + np.where(y[:, None], 20, -20) * [1, 0]
    images = torch.from_numpy(np.pad(points.clip(0, 255)[:, None, None], ((0, 0), (0, 0), (0, 1), (0, 0))))
    rows = TrainingSet(
        images.to(torch.uint8), y[:, None].astype(np.float32), np.ones(400, np.float32), tuple(map(str, range(400)))
    )
    head = torch.nn.Linear(2, 1)
    torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
    flat = Classifier(Network(Flat(), head), 2, {})
    known = fit_epistemic(flat, rows, **at(tmp_path, seed))
    far = torch.zeros(2, 1, 2, 2)
    far[:, 0, 0] = torch.tensor([[110.0, 250.0], [110.0, 5.0]]) / 255
    for name in ("bald", "variance"):
        near = known.score(rows.images, name).mean()
        assert known.score(far, name).min() > 3 * near, name


class Brightness(torch.nn.Module):
    """Two features: the mean of an image, and what it has above a brightness that no training image has."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([mean, (mean - 1.9).relu()], 1)


def test_a_feature_that_no_training_image_has_does_not_drown_what_the_members_say(tmp_path: Path) -> None:
    """The least stir of it would, were it divided by its own spread, which is nothing."""
    torch.manual_seed(0)
    classifier = Classifier(Network(Brightness(), torch.nn.Linear(2, FINDINGS)), SIZE, {})
    head = fit_epistemic(classifier, toy(), **at(tmp_path), **FAST)
    spread = head.members.sd
    assert float(spread[1]) == pytest.approx(0.1 * float(spread.mean() * 2 - spread[1]) / 2, rel=1e-5)
    barely, known = (torch.full((1, 1, SIZE, SIZE), value) for value in (0.976, 0.974))  # 1.904 and 1.896 standardised
    assert float(head.score(barely, "variance").max()) < 2 * float(head.score(known, "variance").max())
