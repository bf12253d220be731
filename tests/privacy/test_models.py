"""Gradients a unit equal those of a loop over micro-batches: every network that is shipped, in every way there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medlt.classify.networks import NETWORKS
from medlt.diffusion.adapt import FULL, Finetuning, LoraFinetuning, make_trainable
from medlt.diffusion.autoencoder import Reconstruction, autoencoder
from medlt.diffusion.families import FAMILIES
from medlt.diffusion.prompts import Prompts
from medlt.diffusion.stable.load import load_stable_diffusion
from medlt.diffusion.stable.untrained import untrained
from medlt.privacy.dpsgd.gradients import GRAD_SAMPLE_MODES, PerUnit
from medlt.privacy.dpsgd.preflight import prepare
from medlt.rng import noise_like, torch_generator
from medlt.sparse.embedding import SimplicialCoder
from medlt.sparse.phases import imitation_loss, straight_through_sample
from medlt.testing import tiny_autoencoder_kl, tiny_autoencoder_tiny
from medlt.types import GradSampleMode as Mode
from medlt.types import InputError

Losses = Callable[[Sequence[int]], Tensor]
"""Rows -> their losses [B], a row's chance being its own."""
Case = tuple[nn.Module, Losses]

GROUPS = [0, 0, 1, 2]
WITHIN = 1e-3
"""Relative: what 121 layers make of rounding to float32; one wrong layer is off by far more."""
SMALL: dict[str, dict[str, Any]] = {
    "unet": {"width": 16},
    "transformer": {"width": 8, "depth": 1, "heads": 2, "size": 4},
}


def normal(*shape: int) -> Tensor:
    return noise_like(range(len(GROUPS)), shape)


def stirred(network: nn.Module) -> nn.Module:
    """With weights at which no gradient is zero by the way it starts."""
    draw = torch_generator("stirred")
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=draw)
    return network


def squares(network: nn.Module, *inputs: Tensor) -> Case:
    def losses(rows: Sequence[int]) -> Tensor:
        at = list(rows)
        return network(*(one[at] for one in inputs)).pow(2).flatten(1).mean(1)

    return network, losses


def family(name: str) -> Case:
    torch.manual_seed(0)
    network = stirred(FAMILIES[name](channels=2, findings=2, **SMALL.get(name, {})))
    told = torch.tensor([[1.0, 0, 1, 1, 1], [0, 0, 1, 0, 1], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1]])
    return squares(network, normal(2, 8, 8), torch.tensor([3, 500, 900, 20]), told)


def stable(folder: Path, text: Any, how: Finetuning) -> Case:
    backbone = load_stable_diffusion(folder).backbone(Prompts(("Mass", "Edema")), text)
    make_trainable(backbone.network, how, 0)
    labels = torch.tensor([[1.0, 0], [0, 1], [math.nan, 1], [0, 0]])
    told = backbone.condition(labels, [{"age": 40 + i} for i in range(4)]).detach()
    return squares(stirred(backbone.network), normal(4, 8, 8), torch.tensor([3, 500, 900, 20]), told)


def codec(network: Any, channels: int) -> Case:
    x = normal(channels, 16, 16)

    def losses(rows: Sequence[int]) -> Tensor:
        at = list(rows)
        posterior = network.encode(x[at]).latent_dist
        out = network.decode(posterior.mean + 0.1 * posterior.std).sample
        return (out - x[at]).abs().flatten(1).mean(1) + 0.01 * posterior.kl()

    return network, losses


def decoder(autoencoder: Any) -> Case:
    network, x, z = Reconstruction(autoencoder, decoder_only=True), normal(3, 16, 16), normal(4, 4, 4)

    def losses(rows: Sequence[int]) -> Tensor:
        return (autoencoder.decode(z[list(rows)]).sample - x[list(rows)]).pow(2).flatten(1).mean(1)

    return network, losses


def sparse(phase: str) -> Case:
    coder: Any = stirred(SimplicialCoder(2, 3, groups=2, vocabulary=4, width=8, temperature=0.5, norm="group"))
    coder.requires_grad_(phase == "interaction")
    for part in {"imitation": [coder.encoder], "adaptation": [coder.decoder, coder.classifier]}.get(phase, []):
        part.requires_grad_(True)
    z = normal(2, 8, 8)

    def one(row: int, s: Tensor, logits: Tensor) -> Tensor:
        if phase == "imitation":
            return imitation_loss(logits, torch.full((1, 2, 8, 8), row % 4))
        said = straight_through_sample(s, torch_generator("words", row))
        return (coder.decode(said) - z[[row]]).abs().mean() + coder.classify(said).pow(2).mean()

    def losses(rows: Sequence[int]) -> Tensor:
        logits = coder.logits(z[list(rows)])
        s = logits.softmax(2)
        if phase == "imitation":
            return torch.stack([one(row, s[[i]], logits[[i]]) for i, row in enumerate(rows)])
        said = torch.cat([straight_through_sample(s[[i]], torch_generator("words", row)) for i, row in enumerate(rows)])
        return (coder.decode(said) - z[list(rows)]).abs().flatten(1).mean(1) + coder.classify(said).pow(2).mean(1)

    return coder, losses


def monai(name: str) -> nn.Module:
    from monai.networks.nets import DenseNet, EfficientNet, ResNet

    torch.manual_seed(0)
    if name == "densenet":
        return DenseNet(2, 1, 3, init_features=8, growth_rate=4, block_config=(2, 2), bn_size=2)
    if name == "resnet":
        return ResNet("bottleneck", [1, 1, 1, 1], [4, 4, 8, 8], n_input_channels=1, num_classes=3, spatial_dims=2)
    blocks = ["r1_k3_s11_e1_i32_o8_se0.25", "r2_k3_s22_e2_i8_o12_se0.25"]
    return EfficientNet(blocks, spatial_dims=2, in_channels=1, num_classes=3, drop_connect_rate=0, dropout_rate=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion 1.5's format, one level with attention."""
    return untrained(
        tmp_path_factory.mktemp("sd") / "model", version="1.5", widths=(32, 32), layers=1, text_width=32, text_layers=1
    )


def classifier(network: nn.Module, side: int = 32) -> Case:
    return squares(network, normal(1, side, side).to(next(network.parameters()).dtype))


REFUSED = {
    # weights beside layers in one part, and told by name
    "family transformer": {Mode.HOOKS, Mode.FUNCTORCH, Mode.GHOST},
    # padding
    **{f"sparse {phase}": {Mode.HOOKS, Mode.GHOST} for phase in ("imitation", "adaptation", "interaction")},
}
"""Which ways say that they cannot; Mode.BOOKKEEPING always can."""


def seeded(name: str) -> nn.Module:
    """In float32 a batch and a row of a deep network round to different sides of a ReLU: no error of a gradient."""
    torch.manual_seed(0)
    network = NETWORKS[name](3)
    return network.double() if name in ("resnet50", "densenet121") else network


CASES: dict[str, Callable[[Path], Case]] = {
    **{f"family {name}": lambda _, name=name: family(name) for name in FAMILIES},
    "stable full": lambda at: stable(at, "frozen", FULL),
    "stable full with text": lambda at: stable(at, "trained", FULL),
    "stable lora": lambda at: stable(at, "frozen", LoraFinetuning(rank=2)),
    "stable lora with convolutions and text": lambda at: stable(at, "trained", LoraFinetuning(rank=2, conv=True)),
    "codec": lambda _: codec(autoencoder(2, 16, 2), 1),
    "codec kl": lambda _: codec(tiny_autoencoder_kl(), 3),
    "decoder kl": lambda _: decoder(tiny_autoencoder_kl()),
    "decoder tiny": lambda _: decoder(tiny_autoencoder_tiny()),
    **{f"sparse {p}": lambda _, p=p: sparse(p) for p in ("imitation", "adaptation", "interaction")},
    **{f"classifier {name}": lambda _, name=name: classifier(seeded(name), 64) for name in NETWORKS},
    **{
        f"monai {name}": lambda _, name=name: classifier(monai(name)) for name in ("densenet", "resnet", "efficientnet")
    },
}


def by_loop(network: nn.Module, losses: Losses) -> list[Tensor]:
    """The oracle: one vector of all trainable weights a unit, the mean of its rows' gradients taken one by one."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    sums = [torch.zeros(sum(weight.numel() for weight in weights), dtype=torch.float64) for _ in set(GROUPS)]
    for row, group in enumerate(GROUPS):
        found = torch.autograd.grad(losses([row]).sum(), weights, allow_unused=True)
        flat = [torch.zeros(w.numel()) if g is None else g.flatten() for w, g in zip(weights, found, strict=True)]
        sums[group] += torch.cat(flat) / GROUPS.count(group)
    return sums


SLOW = pytest.mark.slow


def apart(a: Tensor, b: Tensor) -> float:
    """Distance relative to the longer one."""
    return float((a - b).norm() / max(a.norm(), b.norm()))


@pytest.mark.parametrize("name", [pytest.param(one, marks=SLOW) if "resnet50" in one else one for one in CASES])
def test_units_gradients_are_those_of_a_loop(name: str, folder: Path) -> None:
    network, losses = CASES[name](folder)
    prepare(network)
    network.train()
    truth, rows = by_loop(network, losses), range(len(GROUPS))
    norms = torch.stack(truth).norm(dim=1)
    assert (norms > 1e-3).all()
    clip = float(norms.median())
    clipped = sum(one * min(1.0, clip / float(norm)) for one, norm in zip(truth, norms, strict=True))
    refused = {}
    for way in GRAD_SAMPLE_MODES:
        try:
            found, total = summed(network, losses, way, clip)
        except InputError as error:
            refused[way] = str(error)
            continue
        assert torch.allclose(found.double(), norms, rtol=WITHIN), way
        assert apart(total, clipped) < WITHIN, way
        if way != Mode.GHOST:
            for one, other in zip(truth, by_way(network, lambda: losses(rows), way), strict=True):
                assert apart(one, other) < WITHIN, way
    assert set(refused) == REFUSED.get(name, set()), refused


def summed(network: nn.Module, losses: Losses, way: Mode, clip: float) -> tuple[Tensor, Tensor]:
    """Norms [G] and the clipped sum over all weights."""
    unit = PerUnit(network, clip, way)
    try:
        norms = unit.accumulate(lambda: losses(range(len(GROUPS))), GROUPS)
        return norms, torch.cat([weight.summed_grad.flatten() for weight in unit.weights.values()])
    finally:
        unit.close()


def by_way(network: nn.Module, loss: Callable[[], Tensor], way: Mode) -> Tensor:
    """Gradients [G, all weights]."""
    unit = PerUnit(network, math.inf, way)
    try:
        return torch.cat([one.flatten(1) for one in unit.unit_gradients(loss, GROUPS).values()], 1)
    finally:
        unit.close()
