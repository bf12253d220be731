"""The AID-biased loss: its formula written out, where it vanishes in closed form, which rows and batches it takes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medlt.diffusion.in_band_loss import AidLoss, rarest
from medlt.diffusion.labels import LabelUNet, LabelVector
from medlt.diffusion.losses import Noised, NoisedLoss, Rows
from medlt.diffusion.noise import STABLE_DIFFUSION, Prediction
from medlt.rng import noise_like, torch_generator
from medlt.training.settings import BatchPart
from medlt.types import InputError

NAN = float("nan")
VECTOR = LabelVector(3)
ABAR = STABLE_DIFFUSION.abar()
LABELS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0], [NAN, NAN, NAN], [0, 0, 1]] * 8)


def flat(z: Tensor) -> Tensor:
    return z.flatten(1)


def draw(key: object = 0) -> torch.Generator:
    return torch_generator("aid", key)


def loss(phi: Callable[[Tensor], Tensor] = flat, **changed: Any) -> AidLoss:
    """Finding 0 is common, 1 rare, 2 without a limit; every batch is used."""
    said: dict[str, Any] = {"limits": (3.0, 5.0, NAN), "counts": (90, 9, 1), "share": 1.0, "alpha": 0.1}
    return AidLoss(phi, "flat", **said | changed)


def seen(prediction: Prediction = "epsilon", drop: float = 0.0, key: int = 0) -> Noised:
    """One forward of 48 rows through a real network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = LabelUNet(2, 3, width=8, prediction=prediction)
    x0 = noise_like(range(len(LABELS)), (2, 8, 8))
    whole = NoisedLoss(prediction, VECTOR.null)
    return whole.forward(net, x0, VECTOR(LABELS), drop, draw(("forward", key)), Rows(labels=LABELS), BatchPart())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("estimate", ["published", "clean"])
@pytest.mark.parametrize("unit", [1.0, 2.5])
def test_it_is_the_formula_row_by_row(prediction: Prediction, estimate: Any, unit: float) -> None:
    """alpha (d_t - 1.5 d_f)^2, with phi(x0 + eps - eps_theta) as published, or phi of the clean estimate."""
    noised = seen(prediction)
    value = loss(lambda z: z.sin().flatten(1), estimate=estimate, unit=unit)(noised, draw())
    for i, labels in enumerate(LABELS.nan_to_num(0).tolist()):
        t, a = int(noised.t[i]), noised.a[i]
        said = (noised.x_t[i] - a.sqrt() * noised.estimate[i]) / (1 - a).sqrt()
        shown = noised.x0[i] + noised.n[i] - said if estimate == "published" else noised.estimate[i]
        d = ((1 - ABAR[-1]).sqrt() / (1 - ABAR[t]).sqrt()) * (noised.x0[i].sin() - shown.sin()).norm() / unit
        limit = 5.0 if labels[1] else 3.0 if labels[0] else NAN  # the rarest of those with both is 1
        used = limit == limit and 20 <= t <= 600
        expected = 0.1 * (d - 1.5 * limit / unit) ** 2 if used else torch.zeros(())
        torch.testing.assert_close(value[i], expected, rtol=2e-3, atol=1e-5)
    assert (value > 0).sum() >= 8


class Level(nn.Module):
    """Answers x0 = one learnt number everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.1))

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """[B,1,1,1]."""
        return self.level.expand_as(x_t)


def test_estimates_move_to_where_it_is_derived() -> None:
    """x0 = 0 and an answer b at every t: the mean of (f_t |b| - 1.5 d_f)^2 is least at b = 1.5 d_f E f / E f^2."""
    f = ((1 - ABAR[-1]) / (1 - ABAR[20:601])).sqrt()
    wanted = 1.5 * 3.0 * f.mean() / f.square().mean()
    net, extra = Level(), loss(estimate="clean", alpha=1.0)
    labels = torch.tensor([[1.0, 0, 0]]).expand(512, 3)
    optimizer, track = torch.optim.SGD(net.parameters(), lr=0.02), []
    for step in range(150):
        whole = NoisedLoss("sample", VECTOR.null)
        noised = whole.forward(
            net, torch.zeros(512, 1, 1, 1), VECTOR(labels), 0.0, draw(step), Rows(labels=labels), BatchPart()
        )
        value = extra(noised, draw()).mean()
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        track.append(net.level.detach().clone())
    assert float(torch.stack(track[50:]).mean()) == pytest.approx(float(wanted), rel=0.03)


@pytest.mark.parametrize("share", [0.2, 0.9, 1.1, 3.0])
def test_the_gradient_flips_at_one_and_a_half_times_the_limit(share: float) -> None:
    """An estimate nearer to its image than 1.5 d_f is moved away from it, one further away is moved towards it."""
    t = torch.full((1,), 400)
    factor = ((1 - ABAR[-1]) / (1 - ABAR[400])).sqrt()
    away = nn.functional.normalize(noise_like([1], (1, 4, 4)).flatten(1)).reshape(1, 1, 4, 4)
    net = Level()
    noised = NoisedLoss("sample", VECTOR.null).run(
        net, noise_like([2], (1, 4, 4)), noise_like([3], (1, 4, 4)), t, VECTOR(LABELS[:1]), torch.zeros(1) > 0,
        Rows(labels=LABELS[:1]),
    )  # fmt: skip
    out = (noised.x0 + share * 1.5 * 3.0 / factor * away).requires_grad_()
    loss(alpha=1.0)(replace(noised, out=out), draw()).sum().backward()  # type: ignore[no-untyped-call]
    assert out.grad is not None
    outward = float((-out.grad * away).sum())
    assert outward == pytest.approx(float(2 * factor * 1.5 * 3.0 * (1 - share)), rel=1e-3)


def test_gradients_reach_the_denoiser_only() -> None:
    noised = seen()
    phi = nn.Sequential(nn.Flatten(), nn.Linear(128, 4)).requires_grad_(False)
    loss(phi)(noised, draw()).sum().backward()  # type: ignore[no-untyped-call]
    grads = [weight.grad for weight in noised.network.parameters() if weight.requires_grad]
    assert sum(grad is not None and bool(grad.abs().sum() > 0) for grad in grads) > len(grads) / 2
    assert all(weight.grad is None for weight in phi.parameters())


def test_rows_told_nothing_and_early_and_late_timesteps_are_left_out() -> None:
    noised = seen(drop=0.5)
    value = loss(low=300, high=0.5)(noised, draw())
    limited = (LABELS[:, :2].nan_to_num(0) == 1).any(1)
    assert torch.equal(value > 0, limited & ~noised.dropped & (noised.t >= 300) & (noised.t <= 500))
    assert (value > 0).any()
    assert loss(low=601)(noised, draw()).tolist() == [0.0] * len(LABELS)


def test_a_share_of_batches_is_used_the_same_for_all_parts() -> None:
    noised, extra = seen(), loss(share=0.25)
    on = [bool(extra(noised, draw(step)).any()) for step in range(400)]
    assert 0.18 < sum(on) / 400 < 0.32
    part = replace(noised, part=BatchPart(1, 2))
    assert [bool(extra(part, draw(step)).any()) for step in range(40)] == on[:40]
    assert not any(loss(share=0.0)(noised, draw(step)).any() for step in range(40))


def test_alpha_zero_is_off_and_draws_nothing() -> None:
    stream = draw()
    before = stream.get_state()
    assert loss(alpha=0.0)(seen(), stream).tolist() == [0.0] * len(LABELS)
    assert torch.equal(stream.get_state(), before)


def test_a_perfect_estimate_has_a_finite_gradient() -> None:
    """The norm has no derivative at 0; a row there must not spoil the batch."""
    noised = seen("sample")
    out = noised.x0.clone().requires_grad_()
    loss()(replace(noised, out=out), draw()).sum().backward()  # type: ignore[no-untyped-call]
    assert out.grad is not None
    assert bool(out.grad.isfinite().all())


def test_the_rarest_finding_of_a_row() -> None:
    counts = torch.tensor([90.0, 9.0, 9.0])
    labels = torch.tensor([[1.0, 0, 0], [1, 1, 1], [1, NAN, 1], [0, 0, 0], [NAN, NAN, NAN], [0.4, 0.6, 0]])
    assert rarest(labels, counts).tolist() == [0, 1, 2, -1, -1, 1]


def test_each_setting_has_its_digest_and_bad_ones_are_told() -> None:
    changes: list[dict[str, Any]] = [{}, {"alpha": 0.2}, {"limits": (3.0, 4.0, NAN)}, {"estimate": "published"},
                                     {"unit": 2.0}, {"low": 30}, {"counts": (91, 9, 1)}]  # fmt: skip
    assert len({loss(**change).digest for change in changes}) == len(changes)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"alpha": -1.0}, "alpha is -1"),
        ({"share": 1.5}, "share is 1.5"),
        ({"unit": 0.0}, "unit is 0"),
        ({"counts": (1, 2)}, "3 limits for 2"),
    ]
    for change, said in bad:
        with pytest.raises(InputError, match=said):
            loss(**change)
