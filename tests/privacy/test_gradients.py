"""Clipped sums of every way against a loop that computes each unit's gradient alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from medlt.privacy.dpsgd.gradients import GRAD_SAMPLE_MODES, PerUnit, fastest_mode
from medlt.privacy.dpsgd.groups import Groups, coefficients
from medlt.types import GradSampleMode as Mode
from medlt.types import InputError

RowsLoss = Callable[[nn.Module, Tensor], Tensor]
"""(network, row numbers) -> losses."""


def alone(net: nn.Module, loss: RowsLoss, groups: Sequence[int]) -> dict[str, Tensor]:
    """Each unit's gradient [G,...] of its mean loss, from a batch that holds no other unit."""
    weights = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
    told = torch.as_tensor(groups)
    found: dict[str, list[Tensor]] = {name: [] for name in weights}
    for unit in told.unique_consecutive():
        mean = loss(net, (told == unit).nonzero().flatten()).mean()
        got = torch.autograd.grad(mean, list(weights.values()), allow_unused=True)
        for (name, weight), one in zip(weights.items(), got, strict=True):
            found[name].append(torch.zeros_like(weight) if one is None else one)
    return {name: torch.stack(ones) for name, ones in found.items()}


def clipped(units: dict[str, Tensor], clip: float) -> tuple[Tensor, dict[str, Tensor]]:
    norms = torch.stack([one.flatten(1).norm(dim=1) for one in units.values()]).norm(dim=0)
    keep = (clip / norms.clamp_min(1e-30)).clamp(max=1)
    return norms, {name: torch.tensordot(keep, one, 1) for name, one in units.items()}


def agree(net: nn.Module, loss: RowsLoss, groups: Sequence[int], way: Mode, within: float = 3e-5) -> None:
    """Norms, sums and, where there are any, gradients of units; afterwards the network is as it was."""
    net.train()
    units = alone(net, loss, groups)
    norms, _ = clipped(units, 1.0)
    clip = float(norms.median()) * 0.9 + 1e-6
    _, sums = clipped(units, clip)
    before, attributes = copy.deepcopy(net.state_dict()), {id(m): set(m.__dict__) for m in net.modules()}
    rows = torch.arange(len(groups))
    per_unit = PerUnit(net, clip, way)
    try:
        for _ in range(2):  # a second time: nothing is left of the first
            per_unit.clear()
            torch.testing.assert_close(
                per_unit.accumulate(lambda: loss(net, rows), groups), norms, rtol=1e-4, atol=1e-6
            )
        scale = max(float(one.abs().max()) for one in sums.values()) + 1e-12
        for name, weight in per_unit.weights.items():
            torch.testing.assert_close(weight.summed_grad, sums[name], rtol=1e-4, atol=within * scale, msg=name)
        if way != Mode.GHOST:
            largest = max(float(one.abs().max()) for one in units.values()) + 1e-12
            for name, one in per_unit.unit_gradients(lambda: loss(net, rows), groups).items():
                torch.testing.assert_close(one, units[name], rtol=1e-4, atol=within * largest, msg=name)
    finally:
        per_unit.close()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert {id(m): set(m.__dict__) for m in net.modules()} == attributes
    assert all(weight.grad is None and not hasattr(weight, "summed_grad") for weight in net.parameters())


def squares(net: nn.Module, x: Tensor) -> RowsLoss:
    """Each row's loss, uneven in the output so that no gradient vanishes by symmetry."""

    def loss(network: nn.Module, rows: Tensor) -> Tensor:
        y = network(x[rows]).flatten(1)
        return (y - torch.linspace(-1, 1, y.shape[1])).pow(2).mean(1) * (1 + rows % 3)

    return loss


def groups_of(sizes: Sequence[int]) -> list[int]:
    return [unit for unit, size in enumerate(sizes) for _ in range(size)]


class Pooled(nn.Module):
    """A layer between others, so that what goes back through it is looked at too."""

    def __init__(self, first: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer = first, layer

    def forward(self, x: Tensor) -> Any:
        return torch.tanh(self.layer(torch.tanh(self.first(x))))


SIZES = st.lists(st.integers(1, 3), min_size=1, max_size=4)
SLOW_DRAWS = settings(max_examples=12, suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow])


@pytest.mark.parametrize("way", GRAD_SAMPLE_MODES)
@SLOW_DRAWS
@given(
    sizes=SIZES, stride=st.integers(1, 2), dilation=st.integers(1, 2), grouped=st.sampled_from([1, 2]),
    kernel=st.sampled_from([1, 3]), padding=st.integers(0, 2), bias=st.booleans(), channels_last=st.booleans(),
)  # fmt: skip
def test_convolutions(
    way: Mode, sizes: list[int], stride: int, dilation: int, grouped: int, kernel: int, padding: int, bias: bool,
    channels_last: bool,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, kernel, stride, padding, dilation, grouped, bias)
    net = Pooled(nn.Conv2d(2, 4, 3, padding=1), layer)
    x = torch.randn(sum(sizes), 2, 6, 5)
    if channels_last:
        net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    agree(net, squares(net, x), groups_of(sizes), way)


@pytest.mark.parametrize("way", GRAD_SAMPLE_MODES)
@SLOW_DRAWS
@given(
    sizes=SIZES, between=st.lists(st.integers(1, 3), max_size=2), width=st.integers(1, 40), bias=st.booleans(),
    norm=st.booleans(),
)  # fmt: skip
def test_linear_and_layer_norm(
    way: Mode, sizes: list[int], between: list[int], width: int, bias: bool, norm: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3, bias)) if norm else nn.Linear(width, 3, bias)
    net = Pooled(nn.Linear(4, width), layer)
    agree(net, squares(net, torch.randn(sum(sizes), *between, 4)), groups_of(sizes), way)


@pytest.mark.parametrize("way", GRAD_SAMPLE_MODES)
@SLOW_DRAWS
@given(sizes=SIZES, groups=st.sampled_from([1, 2, 4]), flat=st.booleans(), channels_last=st.booleans())
def test_group_norm(way: Mode, sizes: list[int], groups: int, flat: bool, channels_last: bool) -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, 8)
    nn.init.normal_(norm.weight)
    if flat:
        net, x = Pooled(nn.Conv1d(2, 8, 1).requires_grad_(False), norm), torch.randn(sum(sizes), 2, 5)
    else:
        net, x = Pooled(nn.Conv2d(2, 8, 1), norm), torch.randn(sum(sizes), 2, 3, 4)
        if channels_last:
            net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    agree(net, squares(net, x), groups_of(sizes), way)


class Words(nn.Module):
    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(5, 6, padding_idx=padding), nn.Linear(6, 2)

    def forward(self, ids: Tensor) -> Any:
        return self.out(self.table(ids))


@pytest.mark.parametrize("way", GRAD_SAMPLE_MODES)
@SLOW_DRAWS
@given(sizes=SIZES, length=st.integers(1, 6), seed=st.integers(0, 99))
def test_embedding_with_words_that_come_again(way: Mode, sizes: list[int], length: int, seed: int) -> None:
    torch.manual_seed(seed)
    net = Words(None)
    agree(net, squares(net, torch.randint(0, 5, (sum(sizes), length))), groups_of(sizes), way)


def test_book_gives_the_padding_word_nothing() -> None:
    torch.manual_seed(0)
    net = Words(0)
    agree(net, squares(net, torch.randint(0, 3, (5, 4))), [0, 0, 1, 1, 2], Mode.BOOKKEEPING)


class Own(nn.Module):
    """A weight of its own beside layers, a layer used twice, one tied to another, one that reaches no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.tied = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied.weight = self.twice.weight
        self.lost, self.kept = nn.Linear(4, 4), nn.Linear(4, 2)
        self.blind = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.first(x))
        h = torch.tanh(self.twice(torch.tanh(self.twice(h)))) + self.tied(h)
        self.blind(h)
        return self.kept(h)


@pytest.mark.parametrize("way", [Mode.BOOKKEEPING, Mode.HOOKS, Mode.FUNCTORCH])
@pytest.mark.parametrize("length", [(), (4,)])
def test_layers_used_twice_tied_and_never(way: Mode, length: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = Own()
    agree(net, squares(net, torch.randn(5, *length, 3)), [0, 0, 1, 2, 2], way)


def test_ghost_refuses_layers_used_twice() -> None:
    net = Own().train()
    per_unit = PerUnit(net, 1.0, Mode.GHOST)
    with pytest.raises(InputError, match="used twice"):
        per_unit.accumulate(lambda: net(torch.randn(2, 3)).sum(1), [0, 1])
    per_unit.close()


class Shift(nn.Module):
    """No layer that any formula knows, with layers inside and an input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.inner = nn.Parameter(torch.randn(4)), nn.Sequential(nn.Linear(4, 4), nn.Tanh())

    def forward(self, x: Tensor) -> Any:
        return self.inner(x + self.shift) * self.shift


@pytest.mark.parametrize("way", [Mode.BOOKKEEPING, Mode.HOOKS, Mode.FUNCTORCH, Mode.GHOST])
def test_layers_without_a_formula(way: Mode) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), Shift(), nn.Conv1d(2, 3, 1), nn.Flatten(), nn.Linear(12, 2))
    agree(net, squares(net, torch.randn(5, 2, 3)), [0, 1, 1, 1, 2], way)


@pytest.mark.parametrize("way", [Mode.BOOKKEEPING, Mode.FUNCTORCH])
@pytest.mark.parametrize(
    ("mode", "padding"), [("reflect", 1), ("circular", 2), ("replicate", "same"), ("zeros", "same")]
)
def test_borders_that_are_not_zeros(way: Mode, mode: Any, padding: Any) -> None:
    torch.manual_seed(0)
    net = Pooled(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Conv2d(4, 3, (3 if mode == "zeros" else 2, 3), padding=padding, padding_mode=mode),
    )
    agree(net, squares(net, torch.randn(4, 2, 5, 6)), [0, 0, 1, 2], way)


@pytest.mark.parametrize("way", [Mode.HOOKS, Mode.GHOST])
def test_formulas_refuse_borders_they_take_for_zeros(way: Mode) -> None:
    with pytest.raises(InputError, match="pad with zeros"):
        PerUnit(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), 1.0, way)


class Recomputed(nn.Module):
    gradient_checkpointing = True

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(
            checkpoint(self.body, checkpoint(self.body, x, use_reentrant=False)[..., :3], use_reentrant=False)
        )


def test_recomputed_activations_by_book_only() -> None:
    torch.manual_seed(0)
    net = Recomputed()
    net.body[2] = nn.Identity()
    agree(net, squares(net, torch.randn(4, 2, 3)), [0, 0, 1, 2], Mode.BOOKKEEPING)
    with pytest.raises(InputError, match="gradient_checkpointing"):
        PerUnit(net, 1.0, Mode.HOOKS)
    assert fastest_mode(net.train(), lambda: net(torch.randn(4, 2, 3)).sum((1, 2)), [0, 1, 2, 3]) == Mode.BOOKKEEPING


def unet() -> tuple[nn.Module, RowsLoss]:
    from medlt.diffusion.labels import LabelUNet

    torch.manual_seed(0)
    net = LabelUNet(channels=4, findings=3, width=16, levels=2)
    rows = 7
    x, y, t = torch.randn(rows, 4, 8, 8), torch.randn(rows, 4, 8, 8), torch.randint(0, 1000, (rows,))
    told = torch.cat([torch.rand(rows, 3), torch.ones(rows, 3), torch.arange(rows)[:, None] % 2], 1)

    def loss(network: nn.Module, at: Tensor) -> Tensor:
        return (network(x[at], t[at], told[at]) - y[at]).pow(2).flatten(1).mean(1)

    return net, loss


@pytest.mark.parametrize("way", GRAD_SAMPLE_MODES)
def test_label_unet_with_attention(way: Mode) -> None:
    net, loss = unet()
    agree(net, loss, [0, 0, 1, 2, 2, 2, 3], way)


@pytest.mark.parametrize("way", GRAD_SAMPLE_MODES)
def test_lora_layers(way: Mode) -> None:
    from medlt.diffusion.adapt import LoraFinetuning, make_trainable

    net, loss = unet()
    make_trainable(net, LoraFinetuning(rank=2, conv=True), seed=0)
    for name, weight in net.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    agree(net, loss, [0, 0, 1, 2, 2, 2, 3], way)


@pytest.mark.parametrize("way", GRAD_SAMPLE_MODES)
def test_sixteen_bits_stay_near(way: Mode) -> None:
    net, loss = unet()
    groups, rows = [0, 0, 1, 2, 2, 2, 3], torch.arange(7)
    norms, sums = clipped(alone(net.train(), loss, groups), 0.5)

    def half() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(net, rows).float()

    per_unit = PerUnit(net, 0.5, way)
    torch.testing.assert_close(per_unit.accumulate(half, groups), norms, rtol=0.03, atol=0)
    flat = torch.cat([weight.summed_grad.flatten() for weight in per_unit.weights.values()])
    wanted = torch.cat([one.flatten() for one in sums.values()])
    assert float((flat - wanted).norm() / wanted.norm()) < 0.05
    assert all(weight.summed_grad.dtype == torch.float32 for weight in per_unit.weights.values())
    per_unit.close()


@pytest.mark.parametrize("way", GRAD_SAMPLE_MODES)
def test_pieces_add_up_and_no_row_is_no_forward(way: Mode) -> None:
    net, loss = unet()
    net.train()
    groups = [0, 0, 1, 2, 2, 2, 3]
    _, sums = clipped(alone(net, loss, groups), 0.5)
    per_unit = PerUnit(net, 0.5, way)

    def never() -> Tensor:
        raise AssertionError("called for no row")

    assert per_unit.accumulate(never, []).shape == (0,)
    assert all(not weight.summed_grad.any() for weight in per_unit.weights.values())
    for piece in (slice(0, 3), slice(3, 7)):
        per_unit.accumulate(partial(loss, net, torch.arange(7)[piece]), groups[piece])
    for name, weight in per_unit.weights.items():
        torch.testing.assert_close(weight.summed_grad, sums[name], rtol=1e-4, atol=1e-5, msg=name)
    per_unit.close()


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=5), st.floats(1e-3, 1e3))
def test_no_unit_is_left_longer_than_the_clip(norms: list[float], clip: float) -> None:
    told = torch.tensor(norms)
    assert (coefficients(told, clip) * told <= clip).all()
    assert (coefficients(told, clip) * told >= torch.minimum(told, torch.tensor(clip)) * (1 - 1e-5)).all()
    assert torch.equal(coefficients(told, float("inf")), torch.ones(len(norms)))


def test_groups_apart_and_total_are_the_same_rows() -> None:
    rows = torch.arange(12.0).reshape(6, 2, 1)
    told = Groups.of([5, 5, 5, 2, 9, 9], torch.device("cpu"))
    assert told.sizes.tolist() == [3, 1, 2]
    torch.testing.assert_close(told.by_unit(rows).sum(1), told.total(rows.sum(1)))
    assert told.by_unit(rows)[1].flatten().tolist() == [6, 7, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="adjacent"):
        Groups.of([0, 1, 0], torch.device("cpu"))


class Outside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Any:
        return self.out(F.linear(x, self.layer.weight))


class Once(nn.Module):
    """Positions looked up once for all rows, as CLIP's text encoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.out = nn.Embedding(2, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Any:
        return self.out(x + self.place(torch.arange(2)[None]))


@pytest.mark.parametrize("way", [Mode.BOOKKEEPING, Mode.HOOKS, Mode.FUNCTORCH])
@pytest.mark.parametrize("kind", [Outside, Once])
def test_what_cannot_be_told_apart_is_refused(way: Mode, kind: type[nn.Module]) -> None:
    net = kind().train()
    per_unit = PerUnit(net, 1.0, way)
    with pytest.raises(InputError, match=r"outside|but the batch has"):
        per_unit.accumulate(lambda: net(torch.randn(4, 2, 3)).sum((1, 2)), [0, 1, 2, 3])
    per_unit.close()


def test_a_loss_of_the_whole_batch_is_refused() -> None:
    net = nn.Linear(2, 1).train()
    per_unit = PerUnit(net, 1.0, Mode.BOOKKEEPING)
    with pytest.raises(InputError, match="one value for each row"):
        per_unit.accumulate(lambda: net(torch.randn(3, 2)).mean(), [0, 1, 2])


def test_bad_ways_and_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="magic computes no gradients"):
        PerUnit(nn.Linear(2, 1), 1.0, "magic")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="trainable"):
        PerUnit(nn.Linear(2, 1).requires_grad_(False), 1.0, Mode.BOOKKEEPING)


def test_the_fastest_way_is_one_that_works() -> None:
    net, loss = unet()
    rows = torch.arange(7)
    assert fastest_mode(net.train(), lambda: loss(net, rows), [0, 0, 1, 2, 2, 2, 3]) in GRAD_SAMPLE_MODES
    twice = Own().train()
    told = fastest_mode(twice, lambda: twice(torch.ones(2, 3)).sum(1), [0, 1], modes=[Mode.GHOST, Mode.HOOKS])
    assert told == Mode.HOOKS
    with pytest.raises(InputError, match="used twice"):
        fastest_mode(twice, lambda: twice(torch.ones(2, 3)).sum(1), [0, 1], modes=[Mode.GHOST])


def test_ghost_refuses_a_weight_that_is_used_outside_of_its_layer() -> None:
    """It has no norm of such a weight, which would then pass without a clip."""
    layer = nn.Linear(3, 3)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    gradients = PerUnit(layer, 1.0, Mode.GHOST)
    with pytest.raises(InputError, match="use grad_sample_mode: bookkeeping"):
        gradients.accumulate(lambda: (x @ layer.weight.T).pow(2).sum(1), torch.arange(6))
