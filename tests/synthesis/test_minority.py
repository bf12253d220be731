"""Minority and JEPA guides on mixtures whose denoiser is known, and on the small collection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from medlt.diffusion import schedulers
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.labels import LabelUNet
from medlt.diffusion.noise import STABLE_DIFFUSION
from medlt.diffusion.sampler import from_noise, sample
from medlt.diffusion.signals import between
from medlt.rng import noise_like, seed_of
from medlt.synthesis.guides import Guide, SamplingContext, guided
from medlt.synthesis.minority import JepaGuide, MinorityGuide, MinoritySampling, ReferenceLevels, Unit, reference_levels
from medlt.testing import Mixture, label_backbone
from medlt.types import InputError

ABAR = STABLE_DIFFUSION.abar().double()
MEANS = torch.tensor([[2.0, 0.0], [-2.0, 1.5], [-1.0, -2.5]]).double()
MIXTURE = Mixture(torch.tensor([0.90, 0.09, 0.01]).double(), MEANS, 0.25, ABAR)
DDIM = schedulers.factory("ddim", 10)
PAPER = MinorityGuide(weight=0.4, weight_unit="published")
Methods = dict[str, Callable[..., Any]]


def mixed(prediction: str = "sample", sizes: list[int] | None = None) -> Backbone:
    """The mixture as a backbone that predicts x0, the noise or v; `sizes` collects the number of rows of every call."""

    def answer(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        if sizes is not None:
            sizes.append(len(x))
        a = ABAR[t[0]]
        x0 = MIXTURE(x, int(t[0]))
        n = (x - a.sqrt() * x0) / (1 - a).sqrt()
        return {"sample": x0, "epsilon": n, "v_prediction": a.sqrt() * n - (1 - a).sqrt() * x0}[prediction]

    return label_backbone(answer, 1, prediction=prediction)


def context(
    backbone: Backbone, rows: int, timesteps: list[float], scheduler: Callable[[], Any] = DDIM
) -> SamplingContext:
    labels = torch.ones(rows, 1)
    zeros = torch.zeros(rows, dtype=torch.int64)
    return SamplingContext(
        backbone, backbone.condition(labels), labels, zeros, torch.arange(rows), timesteps, scheduler
    )


def draw(*guides: Guide, name: str = "ddim", rows: int = 1000, steps: int = 30, **options: Any) -> Tensor:
    """Clean samples [rows,2] of the mixture under these guides."""
    backbone, scheduler = mixed(**options), schedulers.scheduler(name, steps)
    start = from_noise(noise_like(range(rows), (2,)).double(), scheduler)
    denoiser = guided(guides, context(backbone, rows, list(start.timesteps), schedulers.factory(name, steps)), 1.0)
    return sample(denoiser, start, scheduler, range(rows))


def rarity(x: Tensor) -> Tensor:
    """-log p of samples [B,2] under the mixture, up to a constant."""
    gap = torch.cdist(x, MEANS).square()
    return -(MIXTURE.weights.log() - gap / (2 * 0.25**2)).logsumexp(1)


@pytest.mark.parametrize(
    ("name", "unit"),
    [("ddim", "published"), ("ddpm", "displacement"), ("dpm++", "displacement")]
    + [pytest.param(n, u, marks=pytest.mark.slow) for n, u in (("ddpm", "published"), ("euler_a", "displacement"))],
)
def test_the_share_of_the_one_percent_mode_rises_with_the_weight(name: str, unit: Unit) -> None:
    weights = (0.0, 0.4, 0.8)
    drawn = (draw(MinorityGuide(weight=w, weight_unit=unit, every=1), name=name, rows=2000, steps=20) for w in weights)
    shares = [float(MIXTURE.fractions(x)[2]) for x in drawn]
    assert 0.004 < shares[0] < 0.02
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 1.5 * shares[0]


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_every_scheduler_is_guided_towards_rarity_and_not_at_weight_0(name: str) -> None:
    bare = draw(name=name, rows=200, steps=12)
    assert torch.equal(draw(MinorityGuide(weight=0), name=name, rows=200, steps=12), bare)
    pushed = draw(MinorityGuide(weight=0.2, every=2), name=name, rows=200, steps=12)
    assert bool(pushed.isfinite().all())
    assert float(rarity(pushed).mean()) > float(rarity(bare).mean())


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_networks_that_predict_noise_v_or_x0_are_guided_alike(name: str) -> None:
    guide = MinorityGuide(weight=0.6, every=2)
    x0, n, v = (draw(guide, name=name, rows=100, prediction=p) for p in ("sample", "epsilon", "v_prediction"))
    assert float((x0 - draw(name=name, rows=100)).abs().max()) > 0.1
    torch.testing.assert_close(n, x0, rtol=0, atol=2e-5)
    torch.testing.assert_close(v, x0, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("weight", "unguided", "extra"), [(1.0, [6], [6]), (3.5, [12], [6, 6, 6])])
def test_metric_and_sampler_share_one_forward_of_the_same_input(
    weight: float, unguided: list[int], extra: list[int]
) -> None:
    """A guided step costs the probe alone: classifier-free guidance takes the estimate that the signal has already."""
    sizes: list[int] = []
    rows = context(mixed(sizes=sizes), 6, [999, 899, 799, 699, 599, 499, 399, 299])
    denoiser, x = (
        guided((MinorityGuide(every=2, window=(0.4, 0.8)),), rows, weight),
        noise_like(range(6), (2,)).double(),
    )
    for t, expected in ((999, unguided), (799, [*extra, 6] if weight == 1 else extra), (699, unguided)):
        sizes.clear()
        denoiser(x, t)
        assert sizes == expected


def test_a_guide_around_another_shifts_what_the_other_made() -> None:
    rows = context(mixed(), 5, [699, 499])
    x, first, second = (
        noise_like(range(5), (2,)).double(),
        MinorityGuide(window=(0, 1), every=1, weight_unit="published"),
        MinorityGuide(window=(0, 1), every=1, probe=0.6, weight_unit="published"),
    )
    bare = rows.conditional(x, 699)
    each = [guided((guide,), rows, 1.0)(x, 699) - bare for guide in (first, second)]
    torch.testing.assert_close(guided((first, second), rows, 1.0)(x, 699), bare + each[0] + each[1])


def test_classifier_free_guidance_stays_out_of_the_metric() -> None:
    """The push is the same whatever its weight: it is of the conditional estimate."""
    network = LabelUNet(2, 3, width=8).eval()
    torch.nn.init.normal_(network.unet.conv_out.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(network.label.null, generator=torch.Generator().manual_seed(1))
    backbone = network.backbone()
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, float("nan")]])
    rows = SamplingContext(
        backbone, backbone.condition(labels), labels, torch.tensor([0, 1]), torch.tensor([3, 4]), [699, 499], DDIM
    )
    x = noise_like([1, 2], (2, 8, 8))
    pushes = []
    for weight in (0.0, 1.0, 3.5):
        with torch.no_grad():
            plain, pushed = (guided(g, rows, weight)(x, 699) for g in ((), (PAPER,)))
        pushes.append(pushed - plain)
    assert all(weight.grad is None for weight in network.parameters())
    for push in pushes:
        b = float(STABLE_DIFFUSION.abar()[499])
        assert push.abs().amax((1, 2, 3)).tolist() == pytest.approx([0.4 * (1 - b) / b**0.5] * 2, rel=1e-3)
        torch.testing.assert_close(push, pushes[1], rtol=0, atol=1e-4)


def minority(methods: Methods, **changed: Any) -> MinoritySampling:
    base = methods["noise"]()
    same = {f.name: getattr(base, f.name) for f in fields(base) if f.init and f.name != "guidance"}
    return MinoritySampling(**(same | changed))


def images(method: Any, rows: pd.DataFrame) -> Tensor:
    return torch.cat([batch.images for batch in method.run(rows)])


def flat(z: Tensor) -> Tensor:
    """Features of latents [B,2,8,8] that bend, so that their Jacobian is not the same everywhere."""
    return z.flatten(1)[:, :6].tanh() + 0.1 * z.flatten(1)[:, 6:12]


GUIDES: dict[str, Guide] = {
    "features": MinorityGuide(every=1, distance=between(flat)),
    "reference": MinorityGuide(
        every=1, reference=ReferenceLevels(torch.tensor([300, 800]), torch.full((5, 2), 5.0), torch.full((5, 2), 5.0))
    ),
    "jepa": JepaGuide(every=1, features=flat),
}


@pytest.mark.parametrize("name", GUIDES)
def test_an_image_alone_is_the_image_in_its_batch(methods: Methods, name: str) -> None:
    method = minority(methods, guidance=(GUIDES[name],))
    rows = method.plan({"Hernia": 3, "Pleural Other": 1}, 3)
    together = images(method, rows)
    assert not torch.equal(together, images(minority(methods, guidance=()), rows))
    assert torch.equal(images(method, rows.iloc[::-1]).flip(0), together)
    assert torch.equal(images(method, rows.iloc[[4]])[0], together[4])


def test_the_method_is_guided_by_default(methods: Methods) -> None:
    method = minority(methods)
    assert method.guidance == (MinorityGuide(),)
    assert method.plan({"Hernia": 2}, 1).index[0].startswith("minority_Hernia")


def real(rows: int = 120) -> tuple[Tensor, Tensor]:
    """Latents of the commonest mode and of the rarest, and labels [rows,2]: one finding a mode."""
    rare = torch.arange(rows) % 3 == 0
    z = torch.where(rare[:, None], MEANS[2], MEANS[0]) + 0.25 * noise_like(range(rows), (2,)).double()
    return z, torch.stack([~rare, rare], 1).float()


def scored(z: Tensor, seed: int, t: int) -> float:
    """L of one real image noised to t, written out."""
    own, probe = (
        noise_like([seed_of(stream, seed, t)], (2,)).double() for stream in ("minority level", "minority probe")
    )
    x0 = MIXTURE(ABAR[t].sqrt() * z[None] + (1 - ABAR[t]).sqrt() * own, t)
    return float((x0 - MIXTURE(ABAR[800].sqrt() * x0 + (1 - ABAR[800]).sqrt() * probe, 800)).norm())


def test_levels_are_what_real_images_of_each_finding_score() -> None:
    z, labels = real()
    backbone = mixed()
    levels = reference_levels(
        backbone, z, backbone.condition(labels[:, :1]), labels, range(120), pooled=0.0, at=(0.3, 0.5)
    )
    assert levels.timesteps.tolist() == [299, 499]
    for g, t in enumerate((299, 499)):
        value = torch.tensor([scored(z[i], i, t) for i in range(120)])
        for k in (0, 1):
            own = value[labels[:, k] == 1]
            assert float(levels.mean[k, g]) == pytest.approx(float(own.mean()), rel=1e-4)
            assert float(levels.sd[k, g]) == pytest.approx(float(own.std(correction=0)), rel=1e-3)
    assert bool(
        (levels.mean[1] > 2 * levels.mean[0]).all()
    )  # the rare finding is rarer as a whole, and has its own level


def test_a_finding_without_images_has_the_level_of_all_and_unknown_labels_count_for_none() -> None:
    z, labels = real()
    backbone = mixed()
    wide = torch.cat([labels, torch.full((120, 1), float("nan"))], 1)
    levels = reference_levels(backbone, z, backbone.condition(labels[:, :1]), wide, range(120), at=(0.5,))
    value = torch.tensor([scored(z[i], i, 499) for i in range(120)])
    assert float(levels.mean[2, 0]) == pytest.approx(float(value.mean()), rel=1e-4)
    assert float(levels.sd[2, 0]) == pytest.approx(float(value.std(correction=0)), rel=1e-3)
    rare = value[labels[:, 1] == 1]
    drawn = (rare.sum() + 5 * value.mean()) / (len(rare) + 5)
    assert float(levels.mean[1, 0]) == pytest.approx(float(drawn), rel=1e-4)
    with pytest.raises(InputError, match="no train image"):
        reference_levels(backbone, z[:0], labels[:0, :1], labels[:0], [])


def test_z_is_linear_between_timesteps_and_constant_beyond() -> None:
    levels = ReferenceLevels(
        torch.tensor([300, 500]), torch.tensor([[1.0, 3.0], [10.0, 10.0]]), torch.tensor([[1.0, 2.0]] * 2)
    )
    value, target = torch.tensor([5.0, 10.0]), torch.tensor([0, 1])
    assert [levels.z(value, target, t).tolist() for t in (100, 300, 400, 500, 900)] == [
        [4.0, 0.0], [4.0, 0.0], [2.0, 0.0], [1.0, 0.0], [1.0, 0.0],
    ]  # fmt: skip
    one = ReferenceLevels(torch.tensor([300]), torch.tensor([[1.0]]), torch.tensor([[2.0]]))
    assert one.z(torch.tensor([5.0]), torch.tensor([0]), 700).tolist() == [2.0]


def test_a_row_is_not_guided_if_it_is_rare_enough_for_its_finding() -> None:
    """Equal images; L is far above the first finding's level, at the second's, and half-way faded at the third's."""
    rows = context(mixed(), 3, [699, 499])
    x = noise_like([4, 4, 4], (2,)).double()
    plain = replace(rows, seeds=torch.tensor([9, 9, 9]), target=torch.tensor([0, 1, 2]))
    guide = MinorityGuide()
    value = float(guide.signal(plain)(plain.conditional(x, 699), 699)[0])
    mean = torch.tensor([[value - 9.0], [value], [value - 1.5]])
    levels = ReferenceLevels(torch.tensor([500]), mean, torch.ones(3, 1))
    bare, full = plain.conditional(x, 699), guided((guide,), plain, 1.0)(x, 699)
    faded = guided((replace(guide, reference=levels),), plain, 1.0)(x, 699)
    assert torch.equal(faded[0], bare[0])
    assert torch.equal(faded[1], full[1])
    torch.testing.assert_close(faded[2], bare[2] + 0.5 * (full[2] - bare[2]), rtol=0, atol=1e-5)


def test_a_reference_limits_the_guidance() -> None:
    """At a weight that throws images off the manifold, those already rare enough are kept nearer to it."""
    z, labels = real()
    backbone = mixed()
    levels = reference_levels(backbone, z, backbone.condition(labels[:, :1]), labels[:, :1], range(120), pooled=0.0)
    strong = MinorityGuide(weight=3.0, weight_unit="published", every=1)
    free, held = (draw(guide, rows=400) for guide in (strong, replace(strong, reference=levels)))
    assert float(rarity(held).mean()) < 0.7 * float(rarity(free).mean())
    assert float(rarity(held).mean()) > float(rarity(draw(rows=400)).mean())


@pytest.mark.parametrize(
    "wrong", [{"weight": -0.1}, {"every": 0}, {"window": (0.8, 0.3)}, {"window": (0.0, 1.1)}, {"probe": 1.0}]
)
def test_a_setting_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="MinorityGuide"):
        MinorityGuide(**wrong)


def test_a_window_without_a_step_is_refused() -> None:
    with pytest.raises(InputError, match=r"none of the sampler's 2 steps.*window.*widen the window"):
        MinorityGuide()(context(mixed(), 2, [99, 49]))
    assert MinorityGuide(weight=0)(context(mixed(), 2, [99, 49]))(MIXTURE) is MIXTURE
