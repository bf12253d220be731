"""Longtail guidance: its objective by hand, its window and cap, and the label term."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from medlt.classify.epistemic import fit_epistemic
from medlt.classify.networks import network
from medlt.classify.sets import TrainingSet
from medlt.classify.train import Classifier
from medlt.classify.uncertainty import STATISTICS
from medlt.diffusion.batching import fixed_batches
from medlt.diffusion.codec import AutoencoderCodec
from medlt.diffusion.displacement import expected_norm
from medlt.diffusion.guidance import compose
from medlt.diffusion.noise import STABLE_DIFFUSION
from medlt.diffusion.sampler import from_noise, sample
from medlt.diffusion.schedulers import factory, scheduler
from medlt.store import Store
from medlt.synthesis.guides import SamplingContext
from medlt.synthesis.longtail import LongtailGuide, differentiable_decoder, uncertainty_objective
from medlt.testing import Mixture, constant_denoiser, label_backbone, tiny_autoencoder_kl
from medlt.training.runtime import Runtime
from medlt.types import Denoiser, InputError

SPREAD = torch.tensor([-1.0, 0.0, 1.0]).double()
MODES = torch.tensor([[2.0, 0.5], [2.0, 1.5], [-2.0, 0.5]]).double()
MIXTURE = Mixture(torch.tensor([0.7, 0.1, 0.2]).double(), MODES, 0.4, STABLE_DIFFUSION.abar().double())


def decode(z: Tensor) -> Tensor:
    """Points [B,2] as images of two pixels."""
    return z[:, None, None]


def guidance_classifier(images: Tensor) -> tuple[Tensor, Tensor]:
    """One finding, logit 2 x; members spread by y: variance 2/3 y^2, whatever the logit."""
    x, y = images[:, 0, 0, :1], images[:, 0, 0, 1:]
    return 2 * x, 2 * x + SPREAD[:, None, None] * y


def context(
    rows: int, timesteps: list[float], labels: Tensor | None = None, target: int = 0, steps: int = 30
) -> SamplingContext:
    labels = torch.ones(rows, 1) if labels is None else labels
    backbone = label_backbone(lambda x, t, c: x, labels.shape[1])
    where = torch.full((rows,), target)
    return SamplingContext(
        backbone, backbone.condition(labels), labels, where, torch.arange(rows), timesteps, factory("ddim", steps)
    )


def plain(**changed: Any) -> LongtailGuide:
    usual: dict[str, Any] = {"decode": decode, "guidance_classifier": guidance_classifier, "n_shifts": 0, "cap": 10.0}
    return LongtailGuide(**(usual | changed))


def drawn(guide: LongtailGuide | None, n: int = 1000, steps: int = 30) -> Tensor:
    """Samples [n,2] of the mixture, guided."""
    made = scheduler("ddim", steps)
    noise = torch.stack([torch.randn(2, generator=torch.Generator().manual_seed(s)) for s in range(n)]).double()
    start = from_noise(noise, made)
    denoiser: Denoiser = MIXTURE if guide is None else compose(guide(context(n, list(start.timesteps))))(MIXTURE)
    return sample(denoiser, start, made)


def test_the_objective_by_hand() -> None:
    """Mean over the target findings, and the log likelihood of what is known of the label."""
    base = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.0, -0.5]]).double()
    members = base + torch.tensor([1.0, -1.0, 0.5]).double()[:, None, None] * torch.tensor([1.0, 2.0, 3.0]).double()
    labels = torch.tensor([[1.0, math.nan, 0.0], [0.25, 1.0, math.nan]]).double()
    targets = torch.tensor([[True, False, True], [False, True, False]])
    values = uncertainty_objective(lambda images: (base, members), STATISTICS["variance"], targets, labels, 0.3)(
        torch.zeros(2), 0
    )
    for b in range(2):
        chosen = [np.var(members[:, b, k].numpy()) for k in range(3) if targets[b, k]]
        likelihood = 0.0
        for k in range(3):
            y, p = float(labels[b, k]), 1 / (1 + math.exp(-base[b, k]))
            likelihood += 0 if math.isnan(y) else y * math.log(p) + (1 - y) * math.log(1 - p)
        assert values[b].item() == pytest.approx(np.mean(chosen) + 0.3 * likelihood)


def test_unknown_labels_and_other_findings_have_no_gradient() -> None:
    base = torch.zeros(1, 3).requires_grad_()
    labels, targets = torch.tensor([[math.nan, 1.0, math.nan]]), torch.tensor([[True, False, False]])
    value = uncertainty_objective(lambda images: (base, base[None]), STATISTICS["energy"], targets, labels)(
        torch.zeros(1), 0
    )
    (g,) = torch.autograd.grad(value.sum(), base)
    torch.testing.assert_close(g, torch.tensor([[-0.5, 0.5, 0.0]]))


def test_weight_zero_is_the_same_denoiser() -> None:
    bare = constant_denoiser(torch.ones(2, 2))
    assert plain(weight=0.0, statistic="nonsense")(context(2, [999.0]))(bare) is bare


def test_the_window_the_interval_and_the_cap(caplog: pytest.LogCaptureFixture) -> None:
    """Steps at 1000/30 apart: eleven or so lie in the middle third, every fifth of them is guided, by equal lengths."""
    z = torch.tensor([[1.0, 0.5], [2.0, 1.0]]).double()
    timesteps = list(from_noise(torch.zeros(1, 2), scheduler("ddim", 30)).timesteps)
    abar = STABLE_DIFFUSION.abar()
    lengths: list[float] = []
    for weight, cap in ((0.02, 10.0), (0.04, 10.0), (0.04, 0.01)):
        guided = plain(weight=weight, cap=cap)(context(2, timesteps))(constant_denoiser(z))
        moved = {t: (guided(z, round(t)) - z).norm(dim=1) / expected_norm(z, float(abar[round(t)])) for t in timesteps}
        on = [t for t in timesteps if moved[t].max() > 0]
        assert on == [t for t in timesteps if 1000 / 3 <= t <= 2000 / 3][::5]
        assert len(on) == 2
        lengths.append(float(moved[on[0]][0]))
        for t in on:
            torch.testing.assert_close(moved[t], torch.full((2,), lengths[-1]).double())
    assert lengths[1] == pytest.approx(2 * lengths[0])
    assert lengths[2] == pytest.approx(0.01)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "a displacement of 0.04 needs moves" in caplog.text
    allowed = float(caplog.text.split("allows ")[1].split(";")[0])
    assert allowed == pytest.approx(0.04 * 0.01 / lengths[1], rel=0.05)  # printed with two digits


def test_one_guided_step_by_hand() -> None:
    """Energy of the logit 2 x without the label term falls in x alone: the step is along -x, by d of the norm."""
    z = torch.tensor([[1.0, 0.5], [2.0, -1.0]]).double()
    rows = context(2, [500, 400, 300, 200, 100], steps=10)
    options: dict[str, Any] = {"statistic": "energy", "weight": 0.05, "every": 9}
    guided = plain(**options, label_weight=0.0)(rows)(constant_denoiser(z))(z, 500)
    b = STABLE_DIFFUSION.abar().double()[500]
    n = expected_norm(z, float(b))[:, None]
    moved = (z - guided) / n
    assert bool((moved[:, 1] == 0).all())
    assert float(moved[0, 0]) > 0
    torch.testing.assert_close(moved[0, 0], moved[1, 0])
    anchored = plain(**options, label_weight=100.0)(rows)(constant_denoiser(z))(z, 500)
    assert bool((anchored[:, 0] > z[:, 0]).all())


def test_guidance_raises_the_statistic_monotonically_and_the_label_term_keeps_the_finding() -> None:
    plainly, values, held = drawn(None), [], []
    for weight in (0.0, 0.02, 0.04, 0.08):
        z = drawn(plain(weight=weight)) if weight else drawn(plain(weight=0.0))
        values.append(float((2 / 3 * z[:, 1] ** 2).mean()))
        held.append(float((z[:, 0] > 0).double().mean()))
        assert weight or torch.equal(z, plainly)
    assert all(low < high for low, high in pairwise(values))
    assert all(share >= held[0] - 0.01 for share in held)


def test_without_the_label_term_the_finding_is_lost() -> None:
    """The energy of the finding is largest where it is absent. With label weight a, its slope is a (1-p) - p, so that
    samples are drawn to the logit log a; without it they lose the finding."""
    options: dict[str, Any] = {"statistic": "energy", "weight": 1.5, "cap": 3.0, "window": (0.0, 1.0), "every": 1}
    logits = {a: guidance_classifier(decode(drawn(plain(**options, label_weight=a))))[0][:, 0] for a in (0.0, 5.0)}
    before = guidance_classifier(decode(drawn(None)))[0][:, 0]
    assert logits[0.0].mean() < before.mean() - 1
    assert logits[0.0].mean() < logits[5.0].mean() - 1
    shares = {a: float((values > 0).double().mean()) for a, values in logits.items()}
    assert shares[0.0] < float((before > 0).double().mean()) - 0.02 < shares[5.0]
    assert (logits[5.0] - math.log(5)).square().mean() < (before - math.log(5)).square().mean()


def test_extra_findings_count_if_a_row_has_them() -> None:
    labels = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, math.nan], [1.0, 0.6, 1.0]])
    targets = plain(extra=(1, 2))._targets(context(3, [500.0], labels))
    assert targets.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert plain()._targets(context(3, [500.0], labels, target=1)).tolist() == [[False, True, False]] * 3


def test_bad_guides_are_refused() -> None:
    with pytest.raises(InputError, match=r"longtail.*window.*widen the window"):
        plain()(context(2, [100.0, 50.0]))
    with pytest.raises(InputError, match="no statistic named 'doubt'"):
        plain(statistic="doubt")(context(2, [500.0]))


@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize("inner", ["minority", "longtail"])
def test_a_gradient_through_the_network_passes_a_guide_inside_or_outside(
    methods: dict[str, Callable[..., Any]], guides: dict[str, Callable[..., Any]], inner: str, guidance: float
) -> None:
    """Without classifier-free guidance one forward serves the inner guide and the sampler; its graph is not lost."""
    both = [guides["minority"](), guides["longtail"](network=True, weight=0.2)]
    order = both if inner == "minority" else both[::-1]
    rows = methods["noise"]().plan({"Hernia": 1}, 0)

    def images(*chosen: Any) -> Tensor:
        method = methods["noise"](guidance=chosen, guidance_scale=guidance)
        return torch.cat([batch.images for batch in method.run(rows)])

    assert not torch.equal(images(*order), images(order[0]))
    assert not torch.equal(images(*order), images(order[1]))


@pytest.fixture
def real_parts(tmp_path: Path) -> dict[str, Any]:
    """An autoencoder, a classifier with its head and a guide through both, all untrained but for the head."""
    rows = torch.randint(0, 255, (40, 1, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels = (torch.rand(40, 5, generator=torch.Generator().manual_seed(1)) < 0.4).numpy().astype(np.float32)
    known = TrainingSet(rows, labels, np.ones(40, np.float32), tuple(map(str, range(40))))
    classifier = Classifier(network("small", 5, 1), 32, {})
    head = fit_epistemic(
        classifier, known, runtime=Runtime("cpu", "fp32", None, 0), store=Store(tmp_path), members=3, hidden=4, steps=3
    )
    codec = AutoencoderCodec(tiny_autoencoder_kl(), "cpu")

    def answer(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        kernel = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(5)) * 0.2
        return torch.nn.functional.conv2d(x, kernel, padding=1) + 0.1 * condition.sum(1)[:, None, None, None]

    told_of = {
        "shape": (4, 8, 8),
        "backbone": label_backbone(answer, 5, channels=4),
        "decode": fixed_batches(codec.decode),
    }
    return {"codec": codec, "head": head, "method": told_of}


def test_with_real_parts_a_row_keeps_its_bytes_with_and_without_checkpointing(
    methods: dict[str, Callable[..., Any]], real_parts: dict[str, Any]
) -> None:
    """Through autoencoder, standardiser and classifier, in lanes of four rows: alone, in company, reversed."""
    images = []
    for checkpointing in (False, True):
        make = methods["longtail"]
        decoding = differentiable_decoder(real_parts["codec"], make().standardiser, checkpointing)
        guide = LongtailGuide(decode=decoding, guidance_classifier=real_parts["head"], weight=0.2)
        method = make(**real_parts["method"], guidance=(guide,))
        rows = method.plan({"Hernia": 3}, 3)
        images.append(torch.cat([batch.images for batch in method.run(rows)]))
        alone = next(iter(method.run(rows.iloc[[2]]))).images
        turned = make(**real_parts["method"], guidance=(guide,), batch_size=2).run(rows.iloc[::-1])
        assert torch.equal(alone[0], images[-1][2])
        assert torch.equal(torch.cat([batch.images for batch in turned]).flip(0), images[-1])
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-3)
    noise = methods["noise"](**real_parts["method"], guidance=())
    unguided = torch.cat([batch.images for batch in noise.run(pd.DataFrame(rows))])
    assert not torch.equal(unguided, images[0])
    off = LongtailGuide(decode=decoding, guidance_classifier=real_parts["head"], weight=0.0)
    quiet = methods["longtail"](**real_parts["method"], guidance=(off,))
    assert torch.equal(torch.cat([batch.images for batch in quiet.run(rows)]), unguided)
