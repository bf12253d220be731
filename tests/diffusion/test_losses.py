"""The denoiser's loss: what it weighs, what further losses see, and that cutting a batch changes nothing."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medlt.diffusion.balanced import Balanced, finding_weights, row_weights
from medlt.diffusion.labels import LabelUNet, LabelVector
from medlt.diffusion.losses import Noised, NoisedLoss, Rows, WeightingScheme, edm_weight, snr_weight
from medlt.diffusion.noise import STABLE_DIFFUSION, NoiseSchedule, Prediction, x0_of
from medlt.rng import noise_like, torch_generator
from medlt.testing import Answer
from medlt.training.settings import BatchPart
from medlt.types import InputError

X0, LABELS = noise_like(range(8), (2, 8, 8)), torch.tensor([[1.0], [0.0]] * 4)
VECTOR = LabelVector(1)
NAN = float("nan")


class Still(Answer):
    """The answer network with a weight, so that it has a device."""

    def __init__(self, answer: Any) -> None:
        super().__init__(answer)
        self.unused = torch.nn.Parameter(torch.zeros(1))


SILENT = Still(lambda x, t, said: torch.zeros_like(x))


def draw() -> torch.Generator:
    return torch_generator("loss test")


def test_unweighted_and_min_snr_are_those_of_diffusers() -> None:
    """low 0: gamma 5 is diffusers' own min-SNR weight, gamma inf is none."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    schedule, t = DDPMScheduler(**STABLE_DIFFUSION.options()), torch.arange(1000)
    snr, a = compute_snr(schedule, t), STABLE_DIFFUSION.abar()
    torch.testing.assert_close(snr_weight(a, "epsilon", 0, 5), snr.clamp(max=5) / snr, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(snr_weight(a, "v_prediction", 0, 5), snr.clamp(max=5) / (snr + 1), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(snr_weight(a, "epsilon", 0, float("inf")), torch.ones(1000))


def test_a_zero_terminal_schedule_weighs_its_last_step_with_a_number() -> None:
    a = replace(STABLE_DIFFUSION, zero_terminal=True).abar()
    for prediction in ("epsilon", "v_prediction", "sample"):
        assert snr_weight(a, prediction, 0.0).isfinite().all()  # type: ignore[arg-type]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_weight_of_edm_is_one_loss_on_x0(prediction: Prediction) -> None:
    """EDM, table 1, sigma_data 1: lambda = (sigma^2 + 1) / sigma^2 on x0, and an unweighted error of v."""
    a = torch.tensor([0.001, 0.3, 0.7, 0.99]).double()
    x_t, out, d, sigma2 = torch.zeros(4).double(), torch.zeros(4).double(), 0.1, (1 - a) / a
    x0_error = x0_of(out + d, x_t, a, prediction) - x0_of(out, x_t, a, prediction)
    torch.testing.assert_close(edm_weight(a, prediction) * d**2, (sigma2 + 1) / sigma2 * x0_error**2)
    torch.testing.assert_close(edm_weight(a, "v_prediction"), torch.ones_like(a))
    assert edm_weight(torch.zeros(1), prediction).isfinite().all()


@pytest.mark.parametrize("shift", [1.0, 0.25])
def test_noise_levels_of_edm_are_log_normal_and_move_with_the_schedule(shift: float) -> None:
    noise = NoiseSchedule(zero_terminal=True, shift=shift)
    t = NoisedLoss("v_prediction", torch.zeros(1), noise, scheme="edm").timesteps(40_000, draw())
    a = noise.abar()[t].double().clamp_min(1e-9)
    log_sigma = ((1 - a) / a).log() / 2
    middle, spread = math.log(2) - 0.4 + math.log(shift), 1.0
    assert float(log_sigma.median()) == pytest.approx(middle, abs=0.03)
    quantiles = log_sigma.quantile(torch.tensor([0.1587, 0.8413]).double())
    assert quantiles.tolist() == pytest.approx([middle - spread, middle + spread], abs=0.05)


@pytest.mark.parametrize("scheme", ["min_snr", "uniform"])
def test_other_schemes_draw_all_timesteps_alike(scheme: WeightingScheme) -> None:
    t = NoisedLoss("v_prediction", torch.zeros(1), scheme=scheme).timesteps(40_000, draw()).double()
    assert (float(t.min()), float(t.max())) == (0, 999)
    assert float(t.mean()) == pytest.approx(499.5, abs=5)


def test_the_scheme_of_a_training_decides_the_weight_of_its_rows() -> None:
    weights = {}
    for scheme in ("min_snr", "uniform", "edm"):
        loss = NoisedLoss("v_prediction", VECTOR.null, scheme=scheme)  # type: ignore[arg-type]
        noised = loss.forward(SILENT, X0, VECTOR(LABELS), 0.0, draw(), Rows(), BatchPart())
        weights[scheme] = noised.weight
        expected = (noised.a.sqrt() * noised.n - (1 - noised.a).sqrt() * X0).pow(2).flatten(1).mean(1) * noised.weight
        torch.testing.assert_close(loss.each(noised), expected)
    assert torch.equal(weights["edm"], torch.ones(8))
    assert torch.equal(weights["uniform"], torch.ones(8))
    assert weights["min_snr"].std() > 0


def test_offset_noise_is_off_by_default_and_shifts_whole_channels() -> None:
    seen: list[Tensor] = []

    def look(noised: Noised, _: torch.Generator) -> Tensor:
        seen.append(noised.n)
        return noised.out.sum() * 0

    for offset in (0.0, 0.5):
        NoisedLoss("epsilon", VECTOR.null, offset=offset, extra_losses=(look,))(SILENT, X0, VECTOR(LABELS), 0.0, draw())
    shift = seen[1] - seen[0]
    assert shift.flatten(2).std(2).max() < 1e-6
    assert 0.1 < shift.std() < 1.5
    t = torch.randint(0, 1000, (8,), generator=(stream := draw()))
    assert torch.equal(seen[0], torch.randn(X0.shape, generator=stream))
    assert len(t) == 8


def test_a_further_loss_sees_the_whole_step_and_is_added() -> None:
    seen: list[Noised] = []

    def half_the_estimate(noised: Noised, stream: torch.Generator) -> Tensor:
        seen.append(noised)
        return noised.estimate.pow(2).flatten(1).mean(1) / 2

    rows = Rows([f"u{i}" for i in range(8)], LABELS, [{"sex": "F"}] * 8)
    net = Still(lambda x, t, said: x / 2)
    plain = NoisedLoss("v_prediction", VECTOR.null)
    base = plain(net, X0, VECTOR(LABELS), 0.5, draw(), rows)
    both = replace(plain, extra_losses=(half_the_estimate,))(net, X0, VECTOR(LABELS), 0.5, draw(), rows)
    (noised,) = seen
    torch.testing.assert_close(both - base, noised.estimate.pow(2).mean() / 2)
    assert noised.rows is rows
    assert torch.equal(noised.x_t, noised.a.sqrt() * X0 + (1 - noised.a).sqrt() * noised.n)
    assert torch.equal(noised.out, noised.x_t / 2)
    assert noised.dropped.any()
    assert not noised.dropped.all()
    assert torch.equal(noised.condition[noised.dropped], torch.zeros(int(noised.dropped.sum()), 3))
    assert torch.equal(noised.condition[~noised.dropped], VECTOR(LABELS)[~noised.dropped])


def other_labels(noised: Noised, stream: torch.Generator) -> Tensor:
    """As class-balancing losses do (arXiv 2305.00562): the same noisy latent once more, under labels drawn anew."""
    assert noised.rows.labels is not None
    new = noised.draw_part(lambda rows: torch.randint(0, 2, (rows, 1), generator=stream)).float()
    again = noised.network(noised.x_t, noised.t, VECTOR(new))
    pull = noised.t / 1000 * (noised.out - again.detach()).pow(2).flatten(1).mean(1)
    return torch.where((new == noised.rows.labels).flatten(), torch.zeros(()), pull)


def by_uid(noised: Noised, _: torch.Generator) -> Tensor:
    """As losses that weigh images do: a table of weights looked up by uid."""
    weight = torch.tensor([1.0 + int(uid[1:]) for uid in noised.rows.uids])
    return weight * (noised.estimate - noised.x0).abs().flatten(1).mean(1)


@pytest.mark.parametrize("cut", [2, 4, 8])
@pytest.mark.parametrize("extra", [(), (other_labels, by_uid)], ids=["plain", "extra"])
def test_the_parts_of_a_batch_add_up_to_it(cut: int, extra: tuple[Any, ...]) -> None:
    """Loss and gradients are the means over the parts: the same noise, drops and draws fall on the same rows."""
    net = LabelUNet(2, 1, width=8)
    loss = NoisedLoss("v_prediction", VECTOR.null, offset=0.1, extra_losses=extra)
    uids = [f"u{i}" for i in range(8)]

    def gradients(of: int) -> tuple[float, list[Tensor]]:
        net.zero_grad()
        total = torch.zeros(())
        for part in (BatchPart(i, of) for i in range(of)):
            x0, labels = part.take(X0), part.take(LABELS)
            value = loss(net, x0, VECTOR(labels), 0.3, draw(), Rows(part.take(uids), labels), part) / of
            value.backward()
            total += value.detach()
        return float(total), [weight.grad.clone() for weight in net.parameters() if weight.grad is not None]

    whole, parts = gradients(1), gradients(cut)
    assert whole[0] == pytest.approx(parts[0], rel=1e-5)
    for a, b in zip(whole[1], parts[1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)


def test_a_finding_weighs_by_how_many_carry_it() -> None:
    assert finding_weights(np.array([4, 100, 0]), "inverse_sqrt").tolist() == [0.5, 0.1, 0.0]
    one, many = finding_weights(np.array([1, 10**6]), "effective_number", 0.99)
    assert one == pytest.approx(1)
    assert many == pytest.approx(0.01)


def test_a_row_weighs_as_its_rarest_finding_and_an_unknown_one_as_the_average() -> None:
    rare, common, none, unknown = [1, 1], [0, 1], [0, 0], [NAN, NAN]
    labels = np.array([rare] + [common] * 15 + [none] * 4 + [unknown] * 3, dtype=float)
    weight = row_weights(labels, "inverse_sqrt")
    assert weight.mean() == pytest.approx(1)
    assert weight[0] / weight[1] == pytest.approx(4)  # 1 row carries the rare finding, 16 the common one
    assert weight[16] / weight[1] == pytest.approx(2)  # 4 rows carry nothing
    assert weight[-1] == pytest.approx(1)
    half_known = row_weights(np.array([[1, NAN], [0, 1], [0, 1], [0, 1], [0, 1]]), "inverse_sqrt")
    assert half_known[0] / half_known[1] == pytest.approx(2)  # what is not known neither adds nor takes
    assert row_weights(np.full((3, 2), NAN), "inverse_sqrt").tolist() == [1, 1, 1]
    with pytest.raises(InputError, match="balance: unknown rule 'rarest'"):
        row_weights(labels, "rarest")  # type: ignore[arg-type]


def test_rows_are_drawn_by_their_weight() -> None:
    balanced = Balanced(np.array([1.0, 2.0, 7.0] + [0.1] * 97), seed=3)
    drawn = np.concatenate([balanced.rows(step, 1) for step in range(20_000)])
    share = np.bincount(drawn, minlength=100)[:3] / len(drawn)
    np.testing.assert_allclose(share, np.array([1, 2, 7]) / 19.7, atol=0.01)


def test_no_patient_is_twice_in_a_batch_while_others_are_left() -> None:
    patients = [f"p{i // 4}" for i in range(40)]
    balanced = Balanced(np.ones(40), patients)
    for step in range(50):
        rows = balanced.rows(step, 6)
        assert len({patients[i] for i in rows}) == 6
    few = Balanced(np.ones(3), ["a", "a", "b"]).rows(0, 8)
    assert len(few) == 8
    assert {"a", "b"} == {["a", "a", "b"][i] for i in few}
    with pytest.raises(InputError, match="1 patients for 2 rows"):
        Balanced(np.ones(2), ["a"])


def test_balanced_rows_are_a_function_of_seed_and_step() -> None:
    draws = [Balanced(np.arange(1.0, 50), seed=seed).rows(step, 8).tolist() for seed in (0, 1) for step in (0, 1)]
    assert draws[0] == Balanced(np.arange(1.0, 50), seed=0).rows(0, 8).tolist()
    assert all(a != b for a, b in itertools.pairwise(draws))
