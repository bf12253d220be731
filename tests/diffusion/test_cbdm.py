"""Class balancing: the published loss where there is one label, and in closed form the estimates at which it comes to
rest with the main loss."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from medlt.diffusion.cbdm import ClassBalancing, pool_weights, similarity
from medlt.diffusion.finetune import LabelledLatents, train_backbone
from medlt.diffusion.labels import LabelUNet, LabelVector
from medlt.diffusion.losses import Noised, NoisedLoss, Rows
from medlt.diffusion.noise import STABLE_DIFFUSION, Prediction, x0_of
from medlt.rng import noise_like, torch_generator
from medlt.training.runtime import Runtime
from medlt.training.settings import BatchPart, Training
from medlt.types import InputError

NAN = float("nan")
CLASSES = torch.eye(3)[[0] * 8 + [1] * 3 + [2]]  # 8, 3 and 1 rows of three classes
VECTOR = LabelVector(3)
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")
INF = float("inf")
CLAMPS = ((0.0, INF), (0.0, 5.0), (1.0, 5.0))
"""SNR of the main loss: the published eps loss, min-SNR, and min-SNR with a floor."""


def draw(key: object = 0) -> torch.Generator:
    return torch_generator("cbdm", key)


def unet(seed: int = 0, prediction: Prediction = "epsilon") -> LabelUNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LabelUNet(2, 3, width=8, prediction=prediction)


def seen(
    net: nn.Module, prediction: Prediction = "epsilon", drop: float = 0.0, labels: Tensor = CLASSES,
    clamp: tuple[float, float] = (1.0, 5.0),
) -> Noised:  # fmt: skip
    """One forward of 12 rows."""
    x0 = noise_like(range(len(labels)), (2, 8, 8))
    loss = NoisedLoss(prediction, VECTOR.null, low=clamp[0], high=clamp[1])
    rows = Rows([f"u{i}" for i in range(len(labels))], labels)
    return loss.forward(net, x0, VECTOR(labels), drop, draw("forward"), rows, BatchPart())


def noise_estimate(x0: Tensor, x_t: Tensor, a: Tensor) -> Tensor:
    return (x_t - a.sqrt() * x0) / (1 - a).sqrt()


def weight_of_noise(a: Tensor, clamp: tuple[float, float]) -> Tensor:
    """The main loss's weight of squared errors of the noise estimate: clamp(SNR) on x0, and |x0|^2 SNR = |eps|^2."""
    snr = a / (1 - a)
    return snr.clamp(*clamp) / snr


@pytest.mark.parametrize("clamp", CLAMPS, ids=["published", "min-snr", "floor"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_one_label_a_row_is_the_published_loss(
    prediction: Prediction, power: float, clamp: tuple[float, float]
) -> None:
    """The formula of the paper, term by term, on noise estimates made from whatever the network predicts, times the
    weight that the main loss has there; with the published main loss that is 1."""
    net, other = unet(prediction=prediction), unet(prediction=prediction)
    extra = ClassBalancing(VECTOR, CLASSES.numpy(), tau=0.7, power=power)
    noised = seen(net, prediction, clamp=clamp)
    value = extra(noised, draw())
    value.sum().backward()  # type: ignore[no-untyped-call]

    again = seen(other, prediction)
    y = extra.draw(12, draw())
    h = noise_estimate(again.estimate, again.x_t, again.a)
    said = x0_of(other(again.x_t, again.t, VECTOR(y)), again.x_t, again.a, prediction)
    h_bal = noise_estimate(said, again.x_t, again.a)
    weight = again.t[:, None, None, None] / 1000 * 0.7
    if clamp != CLAMPS[0]:
        weight = weight * weight_of_noise(again.a, clamp)
    reg = weight * functional.mse_loss(h, h_bal.detach(), reduction="none")
    com = weight * functional.mse_loss(h.detach(), h_bal, reduction="none")
    published = (reg + 1 / 4 * com).flatten(1).mean(1)
    published.sum().backward()  # type: ignore[no-untyped-call]
    assert (value > 0).sum() >= 4
    torch.testing.assert_close(value, published, rtol=1e-3, atol=1e-7)
    for (name, mine), (_, theirs) in zip(net.named_parameters(), other.named_parameters(), strict=True):
        assert mine.grad is not None, name
        scale = float(theirs.grad.abs().max()) if theirs.grad is not None else 0.0
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=2e-3, atol=2e-5 + 1e-3 * scale)


class FreeNoise(nn.Module):
    """The network whose noise estimate of class c is one free number h_c, given as eps, v or x0."""

    def __init__(self, prediction: Prediction) -> None:
        super().__init__()
        self.h, self.prediction = nn.Parameter(torch.zeros(3)), prediction

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """[B,1,1,1], by x_t = sqrt(abar) x0 + sqrt(1 - abar) n and v = sqrt(abar) n - sqrt(1 - abar) x0."""
        a, h = STABLE_DIFFUSION.abar()[t][:, None, None, None], (condition[:, :3] @ self.h)[:, None, None, None]
        x0 = (x_t - (1 - a).sqrt() * h) / a.sqrt()
        return {"epsilon": h, "sample": x0, "v_prediction": a.sqrt() * h - (1 - a).sqrt() * x0}[self.prediction]


@dataclass(frozen=True, eq=False)
class Given(ClassBalancing):
    """The loss with given y', so that all pairs can be weighed by their probabilities."""

    others: Tensor = field(default_factory=lambda: torch.empty(0))

    def draw(self, rows: int, rng: torch.Generator) -> Tensor:
        return self.others


N = torch.tensor([-0.5, 0.3, 2.0])
"""The noise in one x_t if it is of class c."""
FIRST, SECOND = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T


def root(gradient: Callable[[Tensor], Tensor]) -> Tensor:
    """Where an affine gradient [3] -> [3] vanishes."""
    offset = gradient(torch.zeros(3))
    matrix = torch.stack([gradient(unit) - offset for unit in torch.eye(3)], 1)
    return torch.linalg.solve(matrix, -offset)


def published_root(p: Tensor, q: Tensor, t: int, tau: float) -> Tensor:
    """The stationary point of the published losses, mean squared errors of eps, over all pairs (y, y')."""

    def gradient(at: Tensor) -> Tensor:
        h = at.clone().requires_grad_()
        one, two = h[FIRST], h[SECOND]
        pull = (one - two.detach()).square() + 1 / 4 * (one.detach() - two).square()
        ((p[FIRST] * q[SECOND]) @ ((one - N[FIRST]).square() + tau * t / 1000 * pull)).backward()  # type: ignore[no-untyped-call]
        assert h.grad is not None
        return h.grad

    return root(gradient)


WEIGHTS: dict[str, dict[str, Any]] = {
    "published": {"low": 0.0, "high": INF},
    "min-snr": {"low": 0.0},
    "floor": {},
    "edm": {"scheme": "edm"},
}


def own_root(prediction: Prediction, weights: dict[str, Any], p: Tensor, q: Tensor, t: int, tau: float) -> Tensor:
    """The stationary point of this module's main loss and class balancing together, for the same pairs."""
    net, eye, a = FreeNoise(prediction), torch.eye(3), STABLE_DIFFUSION.abar()[t]
    x0, n = ((0.4 - (1 - a).sqrt() * N) / a.sqrt())[FIRST], N[FIRST]  # of any class, x_t is 0.4
    loss = NoisedLoss(prediction, VECTOR.null, **weights)
    balancing = Given(VECTOR, eye.numpy(), tau, others=eye[SECOND])

    def gradient(at: Tensor) -> Tensor:
        net.zero_grad()
        net.h.data = at
        rows, every = Rows(labels=eye[FIRST]), torch.full((9,), t)
        shown = (x0.reshape(-1, 1, 1, 1), n.reshape(-1, 1, 1, 1), every, VECTOR(eye[FIRST]))
        noised = loss.run(net, *shown, torch.zeros(9, dtype=torch.bool), rows)
        both = loss.each(noised) + balancing(noised, draw())
        ((p[FIRST] * q[SECOND]) @ both).backward()  # type: ignore[no-untyped-call]
        assert net.h.grad is not None
        return net.h.grad.clone()

    return root(gradient)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("t", "kept"), [(300, 0.7273), (600, 0.5714), (900, 0.4706)])
def test_both_losses_together_rest_where_the_published_ones_do(
    prediction: Prediction, weights: dict[str, Any], t: int, kept: float
) -> None:
    """The share of the gap between classes that is left at tau 1 is 1 / (1 + 5/4 t/T), whatever the prediction type
    and the weights of timesteps. With other pools and tau the points are those of the paper's losses too."""
    p = torch.tensor([8.0, 3.0, 1.0]) / 12
    gap, published = own_root(prediction, weights, p, p, t, 1.0), published_root(p, p, t, 1.0)
    for one in (gap, published):
        torch.testing.assert_close(one.diff() / N.diff(), torch.full((2,), kept), atol=2e-3, rtol=0)
    even = torch.full((3,), 1 / 3)
    for pool, tau in ((even, 1.0), (p, 0.1)):
        own = own_root(prediction, weights, p, pool, t, tau)
        torch.testing.assert_close(own, published_root(p, pool, t, tau), atol=3e-3, rtol=0)


def test_rows_that_are_told_nothing_and_equal_labels_are_not_pulled() -> None:
    net = unet()
    asked: list[int] = []
    net.register_forward_hook(lambda module, given, out: asked.append(len(given[0])))
    extra = ClassBalancing(VECTOR, CLASSES.numpy(), power=1.0)
    noised = seen(net, drop=0.5)
    value = extra(noised, draw())
    same = (extra.draw(12, draw()) == CLASSES).all(1)
    assert noised.dropped.any()
    assert same.any()
    assert torch.equal(value > 0, ~noised.dropped & ~same)
    assert asked == [12, int((value > 0).sum())]
    assert ClassBalancing(VECTOR, CLASSES[:8].numpy())(seen(net, labels=CLASSES[:8]), draw()).tolist() == [0.0] * 8
    assert asked[2:] == [8, 1]  # nothing to pull: still a second forward, for processes wait for each other in it


class Means(nn.Module):
    """The network whose x0 estimate of class c is one number m_c, whatever it is shown."""

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        self.means = nn.Parameter(means.clone())

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """[B,1,1,1]."""
        return (condition[:, :3] @ self.means)[:, None, None, None].expand_as(x_t)


def stationary(mu: Tensor, p: Tensor, q: Tensor, pull: float) -> Tensor:
    """Where the gradient of both losses vanishes: for each class k, with y ~ p and y' ~ q drawn independently,

    p_k (m_k - mu_k) + pull [ p_k (m_k - sum_c q_c m_c) + 1/4 q_k (m_k - sum_c p_c m_c) ] = 0.
    """
    matrix = torch.diag(p * (1 + pull) + pull / 4 * q) - pull * torch.outer(p, q) - pull / 4 * torch.outer(q, p)
    return torch.linalg.solve(matrix, p * mu)


@pytest.mark.parametrize(("power", "tau"), [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.3)])
def test_class_means_move_towards_the_pools_as_derived(power: float, tau: float) -> None:
    """Gaussian classes at mu, a network of one mean a class, trained by the whole loss until it stands still.

    With the training frequencies (power 0) the solution is m = (mu + L mean) / (1 + L), L = 5/4 pull: the overall mean
    stays, and each class moves towards it by the same share.
    """
    mu, counts = torch.tensor([0.0, 1.0, 4.0]), torch.tensor([24, 6, 2])
    p = counts / counts.sum()
    q = torch.from_numpy(counts.numpy() * counts.numpy() ** -power).float()
    q = q / q.sum()
    pull = float((tau * torch.arange(1000) / 1000).mean())  # low = high = 1: errors of x0 weigh 1 at every t
    wanted = stationary(mu, p, q, pull)
    if power == 0:
        torch.testing.assert_close(wanted, (mu + 1.25 * pull * (p @ mu)) / (1 + 1.25 * pull))

    labels = torch.eye(3).repeat_interleave(counts, 0)
    loss = NoisedLoss(
        "sample", VECTOR.null, low=1, high=1, extra_losses=(ClassBalancing(VECTOR, labels.numpy(), tau, power),)
    )
    net, batch = Means(mu + 1), labels.repeat(64, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    track = []
    for step in range(300):
        x0 = (batch @ mu)[:, None, None, None]
        value = loss(net, x0, VECTOR(batch), 0.0, draw(step), Rows(labels=batch))
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        track.append(net.means.detach().clone())
    torch.testing.assert_close(torch.stack(track[150:]).mean(0), wanted, atol=0.03, rtol=0.02)
    if tau:
        assert (wanted - mu).abs().max() > 0.2  # it moved by much more than the tolerance


def test_tau_zero_leaves_a_training_as_it_was(tmp_path: Path) -> None:
    """Same weights, to the bit, as without the loss, and a further loss after it finds its chance unmoved."""
    data = LabelledLatents(
        lambda uids: noise_like([int(uid) for uid in uids], (2, 8, 8)),
        [str(i) for i in range(12)],
        CLASSES.numpy(),
        contents="noise by uid",
    )

    def chancy(noised: Noised, stream: torch.Generator) -> Tensor:
        return noised.out.flatten(1).mean(1) * noised.draw_part(lambda rows: torch.rand(rows, generator=stream))

    def weights(*extra: Any) -> list[Tensor]:
        training = Training(steps=2, batch_size=4, learning_rate=1e-2, warmup_steps=0)
        name = "-".join(str(getattr(one, "tau", "")) for one in extra)
        trained = train_backbone(
            unet().backbone(), data, folder=tmp_path / name, training=training, extra_losses=extra,
            runtime=Runtime("cpu", "fp32", None, 0),
        )  # fmt: skip
        return list(trained.network.state_dict().values())

    off, on = (ClassBalancing(VECTOR, CLASSES.numpy(), tau=tau) for tau in (0.0, 1.0))
    plain = weights(chancy)
    assert all(torch.equal(a, b) for a, b in zip(plain, weights(off, chancy), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain, weights(on, chancy), strict=True))


@pytest.mark.parametrize("cut", [2, 4])
def test_the_parts_of_a_batch_add_up_to_it(cut: int) -> None:
    net, x0 = unet(), noise_like(range(12), (2, 8, 8))
    loss = NoisedLoss(
        "epsilon", VECTOR.null, extra_losses=(ClassBalancing(VECTOR, CLASSES.numpy(), tau=5.0, power=1.0),)
    )

    @torch.no_grad()
    def total(of: int) -> float:
        parts = [BatchPart(i, of) for i in range(of)]
        told = [(part.take(x0), part.take(CLASSES), part) for part in parts]
        return sum(float(loss(net, x, VECTOR(y), 0.2, draw(), Rows(labels=y), part)) for x, y, part in told) / of

    assert total(cut) == pytest.approx(total(1), rel=1e-5)


def test_circumstances_stay_the_rows_own() -> None:
    told: list[Any] = []

    class Listening(LabelVector):
        def __call__(self, labels: Tensor, about: Any = ()) -> Tensor:
            told.append((labels, about))
            return super().__call__(labels)

    noised = seen(unet())
    about = [{"age": i} for i in range(12)]
    noised = replace(noised, rows=replace(noised.rows, about=about))
    extra = ClassBalancing(Listening(3), CLASSES.numpy(), power=1.0)
    value = extra(noised, draw())
    ((labels, ages),) = told
    pulled = (value > 0).nonzero().flatten().tolist()
    assert [row["age"] for row in ages] == pulled
    assert torch.equal(labels, extra.draw(12, draw())[pulled])


@settings(max_examples=60)
@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, NAN]), min_size=4, max_size=4), min_size=2, max_size=2))
def test_similarity_is_jaccards_over_what_both_know(pair: list[list[float]]) -> None:
    known = [c for c in range(4) if not (np.isnan(pair[0][c]) or np.isnan(pair[1][c]))]
    one, two = ({c for c in known if row[c] == 1} for row in pair)
    expected = len(one & two) / len(one | two) if one | two else 1.0
    assert float(similarity(torch.tensor(pair[:1]), torch.tensor(pair[1:]))) == pytest.approx(expected)


def test_soft_labels_are_partly_similar() -> None:
    y, other = torch.tensor([[0.5, 1.0, 0.0]]), torch.tensor([[1.0, 0.5, 0.0]])
    assert float(similarity(y, other)) == pytest.approx(0.5)


def test_the_pool_is_drawn_by_its_rarest_finding() -> None:
    """Weights by hand, drawn shares, one more class without findings, unknown rows never."""
    labels = np.array([[1, 0]] * 9 + [[1, 1]] + [[0, 0]] * 4 + [[NAN, NAN]] * 5, float)  # n = 10, 1, and 4 without
    weight = pool_weights(labels, 0.5)
    np.testing.assert_allclose(weight / weight[9], [10**-0.5] * 9 + [1] + [0.5] * 4 + [0] * 5)
    assert weight.sum() == pytest.approx(1)
    drawn = ClassBalancing(LabelVector(2), labels, power=0.5).draw(40_000, draw())
    assert float((drawn[:, 1] == 1).float().mean()) == pytest.approx(weight[9], abs=0.01)
    assert not drawn.isnan().any()
    even = pool_weights(CLASSES.numpy(), 1.0)
    np.testing.assert_allclose(even @ CLASSES.numpy(), [1 / 3] * 3)  # the paper's, for fine-tuning
    np.testing.assert_allclose(pool_weights(CLASSES.numpy(), 0.0) @ CLASSES.numpy(), [8 / 12, 3 / 12, 1 / 12])


def test_each_setting_has_its_digest() -> None:
    plain = ClassBalancing(VECTOR, CLASSES.numpy())
    others = [replace(plain, tau=0.2), replace(plain, power=1.0), replace(plain, labels=CLASSES[:9].numpy())]
    assert len({one.digest for one in (plain, *others)}) == 4
    assert plain.digest == ClassBalancing(VECTOR, CLASSES.numpy().astype(np.float64)).digest


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tau": -1.0}, "tau is -1"),
        ({"power": -1.0}, "power is -1"),
        ({"labels": np.full((3, 3), NAN)}, "class balancing: the pool has no row with a known label"),
    ],
)
def test_bad_values_are_told(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ClassBalancing(**({"condition": VECTOR, "labels": CLASSES.numpy()} | settings))
