"""What a network is before it is trained privately: what can be mended is, and told; the rest is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medlt.diffusion.adapt import LoraFinetuning, make_trainable
from medlt.diffusion.labels import LabelUNet
from medlt.files import write_tensors
from medlt.privacy.dpsgd.preflight import assert_reads_back, groups_for, prepare
from medlt.types import InputError


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """Adds and rectifies in place, in three spellings."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.act = nn.BatchNorm2d(4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.first(x))
        residual = out
        out = self.norm(self.second(out))
        out += residual
        out = F.relu(out, inplace=True)
        out *= 2
        return out.mean((2, 3))


class Plain(nn.Module):
    """The same, nothing in place."""

    def __init__(self, like: Residual) -> None:
        super().__init__()
        self.first, self.second, self.norm = like.first, like.second, like.norm

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x).relu()
        return ((self.norm(self.second(first)) + first).relu() * 2).mean((2, 3))


def hooked(network: nn.Module) -> None:
    """Hooks of the kind that gradients one by one are taken by."""
    for part in network.modules():
        if not list(part.children()):
            part.register_full_backward_hook(lambda *_: None)


def test_what_is_written_in_place_is_written_anew_and_nothing_else_changes() -> None:
    x, broken = images(2, 1, 8, 8).requires_grad_(), Residual()
    hooked(broken)
    with pytest.raises(RuntimeError, match="inplace"):
        broken(x).sum().backward()
    network = Residual()
    told = " ".join(prepare(network))
    assert "1 (ReLU; the first is act)" in told
    assert "1 (Residual; the first is the network itself)" in told
    twin = Plain(network)
    expected = torch.autograd.grad(twin(x).pow(2).sum(), list(twin.parameters()))
    hooked(network)
    network(x).pow(2).sum().backward()
    found = dict(network.named_parameters())
    for (name, _), gradient in zip(twin.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found[name].grad, gradient)
    assert torch.equal(copy.deepcopy(network)(x), network(x))
    assert Residual.forward.__qualname__ == "Residual.forward"
    assert "forward" not in Residual().__dict__


def test_a_statement_that_writes_in_place_still_does() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            kept = torch.zeros(2)
            kept.add_(1.0)
            out = self.layer(x)
            out += kept
            return out

    network, x = Writes(), images(3, 2)
    before = network(x)
    assert prepare(network)
    assert torch.equal(network(x), before)


def test_batch_norms_of_what_is_trained_become_group_norms_and_frozen_ones_stay_as_they_were() -> None:
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)),
        nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1), nn.BatchNorm2d(4, affine=False)),
    )
    network(images(4, 1, 8, 8))
    network[0].requires_grad_(False)
    with torch.no_grad():
        network[1][1].weight.fill_(3.0)
    frozen, first = network[0][1], network[0].eval()(images(2, 1, 8, 8))
    told = prepare(network)
    assert told[:2] == (
        "Batch norms became group norms: 2 (BatchNorm2d; the first is 1.1).",
        "Batch norms of frozen parts stay in evaluation mode: 1 (BatchNorm2d; the first is 0.1).",
    )
    assert (network[1][1].num_groups, network[1][3].num_groups) == (4, 1)
    assert network[1][1].weight.unique().item() == 3.0
    assert network[1][3].weight is None
    assert network[0][1] is frozen
    network.train()
    assert torch.equal(network[0](images(2, 1, 8, 8)), first)
    x = images(3, 1, 8, 8)
    torch.testing.assert_close(network(x)[:1], network(x[:1]))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 7, 24, 32, 64, 96, 120, 1024])
def test_groups_divide_channels_and_have_four_where_they_can(channels: int) -> None:
    groups = groups_for(channels)
    assert channels % groups == 0
    assert groups <= 32
    assert groups == 1 or channels // groups >= 4


def test_a_second_look_finds_nothing_to_change() -> None:
    network = Residual()
    prepare(network)
    hooks = [len(part._forward_pre_hooks) for part in network.modules()]
    assert prepare(network) == ()
    assert [len(part._forward_pre_hooks) for part in network.modules()] == hooks
    assert list(network.state_dict()) == list(dict(network.named_parameters()))


def test_a_norm_of_one_value_is_refused_in_the_first_forward() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.GroupNorm(4, 4), nn.Flatten(), nn.Linear(4, 1))
    prepare(network)
    with pytest.raises(InputError, match=r"each group of 1 has one value.*larger images"):
        network(images(2, 1, 4, 4))
    wide = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4, 1))
    prepare(wide)
    assert wide(images(2, 1, 4, 4)).shape == (2, 1)


class Counting(nn.Module):
    """Keeps a mean of what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
        return self.layer(x - self.mean)


class InPlace(Counting):
    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9)
        return self.layer(x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight


@pytest.mark.parametrize("kind", [Counting, InPlace])
def test_a_buffer_that_a_forward_changes_is_refused_in_the_first_forward(kind: type[nn.Module]) -> None:
    network = nn.Sequential(kind()).train()
    prepare(network)
    with pytest.raises(InputError, match="changes a buffer of 0"):
        network(images(3, 2))


REFUSED: list[tuple[Any, str]] = [
    (lambda: nn.LSTM(2, 2), "is a LSTM"),
    (lambda: nn.Sequential(nn.GRU(2, 2)), "0 is a GRU"),
    (lambda: nn.Sequential(nn.MultiheadAttention(4, 2)), "0 is a MultiheadAttention"),
    (lambda: nn.Sequential(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)), "0 is a InstanceNorm2d"),
    (Tied, r"one weight is used as first\.weight and as second\.weight"),
    (lambda: nn.Linear(2, 2).requires_grad_(False), "no weight of the network is trainable"),
]


@pytest.mark.parametrize(("make", "match"), REFUSED)
def test_what_cannot_be_mended_is_refused_with_the_reason(make: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        prepare(make())


def test_frozen_parts_may_be_what_trained_ones_may_not() -> None:
    network = nn.ModuleDict({"frozen": nn.LSTM(2, 2).requires_grad_(False), "trained": nn.Linear(2, 2)})
    assert prepare(network) == ()


def test_layers_that_opacus_has_no_formula_for_are_told() -> None:
    (told,) = prepare(LabelUNet(2, 2, width=16))
    assert told.endswith("for which torch.func is used: 1 (ConditionEmbedding; the first is label).")


class Adapted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unet = LabelUNet(2, 2, width=16)


def test_what_was_saved_is_what_is_in_memory(tmp_path: Path) -> None:
    network = LabelUNet(2, 2, width=16)
    network.save(tmp_path)
    assert_reads_back(network, tmp_path)
    assert_reads_back(network, tmp_path / "model.safetensors")
    with torch.no_grad():
        network.label.null[0] += 1e-7
    with pytest.raises(InputError, match=r"1 tensors are missing or differ.*first is label\.null"):
        assert_reads_back(network, tmp_path)
    with pytest.raises(InputError, match=r"has no \.safetensors file"):
        assert_reads_back(network, tmp_path / "none")


def test_adapters_that_did_not_learn_are_found_by_reading_back(tmp_path: Path) -> None:
    network = Adapted()
    make_trainable(network, LoraFinetuning(rank=2), 0)
    file, kept = tmp_path / "adapter.safetensors", network.state_dict()
    write_tensors(file, {name: value for name, value in kept.items() if "lora_" in name})
    assert_reads_back(network, file)
    with torch.no_grad():
        next(weight for name, weight in network.named_parameters() if "lora_B" in name).add_(1.0)
    with pytest.raises(InputError, match="1 tensors"):
        assert_reads_back(network, file)
    with pytest.raises(InputError, match="are missing"):
        assert_reads_back(network, {name: value for name, value in kept.items() if "lora_A" in name})
