"""Smooth random images, any two of which differ, and a tiny denoiser trained on eleven of them for too long."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from medlt.diffusion.backbone import Backbone
from medlt.diffusion.labels import LabelUNet
from medlt.diffusion.sampler import from_noise, sample
from medlt.diffusion.schedulers import scheduler
from medlt.privacy.audit.views import blurred
from medlt.rng import torch_generator


def smooth(n: int, seed: int, size: int = 32, sigma: float = 2.0) -> Tensor:
    """[n,1,size,size] in [0,1], grey on average, each its own pattern."""
    noise = torch.randn(n, 1, size, size, generator=torch_generator(seed, "smooth"))
    fields = blurred(noise, sigma)
    return (0.5 + 0.15 * fields / fields.std()).clamp(0, 1)


@dataclass(frozen=True)
class Overtrained:
    """`latents` [200,1,8,8], of which the first `members` were trained on, and 48 `samples` of the model."""

    backbone: Backbone
    latents: Tensor
    samples: Tensor
    members: int = 11


def overtrain(latents: Tensor, steps: int) -> Backbone:
    """A LabelUNet trained on these latents and nothing else, plainly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = LabelUNet(channels=1, findings=1, width=8, levels=2, prediction="sample").backbone()
    optimizer = torch.optim.Adam(backbone.network.parameters(), 3e-3)
    abar, null = backbone.noise.abar(), backbone.condition.null.expand(16, -1)
    for step in range(steps):
        draw = torch_generator("overtrain", step)
        x0 = latents[torch.randint(0, len(latents), (16,), generator=draw)]
        t = torch.randint(0, 1000, (16,), generator=draw)
        a = abar[t].view(-1, 1, 1, 1)
        x_t = a.sqrt() * x0 + (1 - a).sqrt() * torch.randn(x0.shape, generator=draw)
        loss = (backbone.network(x_t, t, null) - x0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    backbone.network.eval().requires_grad_(False)
    return backbone


@pytest.fixture(scope="session")
def overtrained() -> Overtrained:
    """Eleven images, seen hundreds of times each."""
    latents = (smooth(200, 0, size=8, sigma=0.8) - 0.5) / 0.15
    backbone = overtrain(latents[:11], 300)
    steps = scheduler("ddim", 15)
    noise = torch.randn(48, 1, 8, 8, generator=torch_generator("samples"))
    with torch.no_grad():
        made = sample(backbone.denoiser(), from_noise(noise, steps), steps)
    return Overtrained(backbone, latents, made)


@pytest.fixture(scope="session")
def images() -> Callable[..., Tensor]:
    """`smooth`, for tests."""
    return smooth


@pytest.fixture(scope="session")
def plainly() -> Callable[[Tensor, int], Backbone]:
    """`overtrain`, for tests."""
    return overtrain
