"""Prepare a network, in place, for private training, and check that saved weights are the trained ones.

The gradient of a unit must not depend on other units, and training may change nothing but weights.

| network has | action |
|---|---|
| BatchNorm that is trained, or normalises trained features | group norm, 4 or more channels per group (1803.08494) |
| BatchNorm in a frozen part | stays in evaluation mode |
| in-place activations, `x += y` | new tensors, because gradients of rows need the old ones |
| CLIP's position embedding, one row for all texts | one row for each text |
| tied weights, recurrent layers, attention of torch, running statistics | refused |
| a group norm with one value in a group, whose output is 0 | refused in the first forward pass |
| a buffer that a forward pass changes: statistics of patients without noise | refused in the first forward pass |
| rows that influence one another, such as a mean over the batch in `forward` | refused by `assert_rows_independent` |
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medlt.files import read_tensors, tensor_bytes
from medlt.privacy.dpsgd.inplace import anew, writes
from medlt.types import InputError

BATCH_NORMS = nn.modules.batchnorm._BatchNorm
INSTANCE_NORMS = nn.modules.instancenorm._InstanceNorm
PROBED = 5
"""Rows that take the first place of the batch that `assert_rows_independent` probes."""
MOVED = 1e-3
"""Share of itself by which rounding in fp32 may move the loss or gradient of a row, at most, if another row changes."""
SOUND = ("diffusers.", "transformers.")
"""Packages whose forward passes write into no layer's output, so that they need no change; tests check those we use."""


def prepare(network: nn.Module) -> tuple[str, ...]:
    """Change a network, in place, so that it can be trained privately. Return one sentence for each change.

    A second call changes nothing. Weights keep their names; batch norms lose their running statistics. Raises
    InputError, with the reason, for a network that cannot be trained privately.
    """
    _refuse(network)
    changes = (_norms(network), _frozen(network), _activations(network), _sums(network),
               _positions(network), _without_formula(network))  # fmt: skip
    _watch(network)
    return tuple(sentence for sentence in changes if sentence)


def assert_rows_independent(network: nn.Module, losses: Callable[[np.ndarray], Tensor], rows: int) -> None:
    """Raise InputError if the loss or the gradient of a row depends on another row of the batch.

    losses: returns the losses [B] of row numbers int64 [B], in fp32, with equal random numbers in each call; rows:
    their number. The first row of a probe batch becomes another one, `PROBED` - 1 times, and the others must not move
    by more than rounding. With fewer than two rows there is nothing to compare.
    """
    if rows < 2:
        return
    one, *others = (_others(network, losses(np.array([first, 0, 0]))) for first in _spread(rows))
    pairs = [pair for other in others for pair in zip(one, other, strict=True)]
    moved = max(float((a - b).norm() / a.norm().clamp_min(1e-12)) for a, b in pairs)
    if moved > MOVED:
        raise InputError(
            "private training: rows of a batch influence one another (a mean or deviation over the batch?): with other "
            f"rows beside it, loss or gradient of a row moves by {moved:.2g} of itself; compute each row by itself"
        )


def _spread(rows: int) -> list[int]:
    """Return up to `PROBED` row numbers, evenly spread, from 0 on."""
    return np.unique(np.linspace(0, rows - 1, PROBED).round().astype(int)).tolist()  # type: ignore[no-any-return]


def _others(network: nn.Module, losses: Tensor) -> list[Tensor]:
    """Return the losses of all rows but the first, and the gradient of their sum, flat."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    total: Any = losses[1:].sum()
    if not total.requires_grad:
        return [losses[1:]]
    gradients = torch.autograd.grad(total, weights, materialize_grads=True)
    return [losses[1:].detach(), torch.cat([one.flatten() for one in gradients])]


def assert_reads_back(network: nn.Module, saved: Mapping[str, Tensor] | Path) -> None:
    """Raise InputError unless `saved` holds all tensors of `network`, equal to the bit.

    saved: tensors by their names in the state of the network, or a safetensors file, or a folder with one. For LoRA,
    the tensors of the adapters are enough.
    """
    where = "the saved weights"
    if not isinstance(saved, Mapping):
        where, saved = str(saved), _read(Path(saved))
    held = network.state_dict()
    adapters = {name for name in held if "lora_" in name}
    missing = sorted((adapters or set(held)) - set(saved))
    other = sorted(name for name in saved if name not in held or not _same(held[name], saved[name]))
    if bad := missing + other:
        raise InputError(
            f"{where}: {len(bad)} tensors are missing or differ from the trained network, the first is {bad[0]}; the "
            "ledger would be wrong: save the weights again"
        )


def _same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have equal types, shapes and bytes."""
    return a.dtype == b.dtype and a.shape == b.shape and tensor_bytes(a) == tensor_bytes(b)


def _read(place: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or of all such files in a folder."""
    files = [place] if place.is_file() else sorted(place.glob("*.safetensors"))
    if not files:
        raise InputError(f"{place} has no .safetensors file; give the file or folder of the saved weights")
    return {name: tensor for file in files for name, tensor in read_tensors(file).items()}


def _trained(module: nn.Module, recurse: bool = True) -> bool:
    """Return whether a weight of the module requires gradients."""
    return any(weight.requires_grad for weight in module.parameters(recurse))


def _count(parts: Sequence[tuple[str, nn.Module]]) -> str:
    """Return the number of these parts, their kinds, and the name of the first."""
    kinds = Counter(type(module).__name__ for _, module in parts)
    return f"{len(parts)} ({', '.join(kinds)}; the first is {parts[0][0] or 'the network itself'})"


def _refuse(network: nn.Module) -> None:
    """Raise InputError for layers that cannot be trained privately."""
    from opacus.validators import ModuleValidator

    if not _trained(network):
        raise InputError("private training: no weight of the network is trainable; use train: full, or train: lora")
    places: dict[nn.Parameter, list[str]] = {}
    for name, weight in network.named_parameters(remove_duplicate=False):
        if weight.requires_grad:
            places.setdefault(weight, []).append(name)
    if tied := [names for names in places.values() if len(names) > 1]:
        raise InputError(
            f"private training: one weight is used as {' and as '.join(tied[0])}, so its gradient cannot be assigned "
            "to units; untie them, or freeze one part"
        )
    for name, module in network.named_modules():
        if not _trained(module, recurse=False) or isinstance(module, BATCH_NORMS):
            continue
        check = ModuleValidator.VALIDATORS.get(type(module))
        if check is not None and (errors := check(module)):
            reason = str(errors[0]).split(". ")[0]
            raise InputError(
                f"private training: {name} is a {type(module).__name__}: {reason}; replace it, or freeze it"
            )


def groups_for(channels: int) -> int:
    """Return the groups of a group norm that replaces a batch norm: at most 32, with at least 4 channels each.

    Opacus allows groups of one channel, whose output is 0 on a feature map of one pixel.
    """
    most = max(1, min(32, channels // 4))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def _norms(network: nn.Module) -> str:
    """Replace the batch norms of trained parts by group norms, also those without weights, which Opacus keeps."""
    norms = [(name, norm) for name, norm in network.named_modules() if isinstance(norm, BATCH_NORMS)]
    norms = [(name, norm) for name, norm in norms if _trained(_around(network, name))]
    for name, norm in norms:
        fresh = nn.GroupNorm(groups_for(norm.num_features), norm.num_features, norm.eps, norm.affine)
        fresh.load_state_dict({own: weight for own, weight in norm.state_dict().items() if own in ("weight", "bias")})
        network.set_submodule(name, fresh.to(next(network.parameters())).train(norm.training))
    return f"Batch norms became group norms: {_count(norms)}." if norms else ""


def _around(network: nn.Module, name: str) -> nn.Module:
    """Return a norm, or the part that contains it if the norm has no weights."""
    norm = network.get_submodule(name)
    return norm if norm.affine else network.get_submodule(name.rpartition(".")[0])


def _frozen(network: nn.Module) -> str:
    """Keep the remaining batch norms, those of frozen parts, in evaluation mode."""
    norms = [(name, norm) for name, norm in network.named_modules() if isinstance(norm, BATCH_NORMS)]
    fresh = [(name, norm) for name, norm in norms if "train" not in norm.__dict__]
    for _, norm in fresh:
        norm.eval()
        norm.train = partial(_stay, norm)  # type: ignore[method-assign, assignment]
    return f"Batch norms of frozen parts stay in evaluation mode: {_count(fresh)}." if fresh else ""


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def _activations(network: nn.Module) -> str:
    """Turn off in-place activations."""
    parts = [(name, module) for name, module in network.named_modules() if getattr(module, "inplace", False) is True]
    for _, module in parts:
        module.inplace = False
    return f"Activations no longer change their input: {_count(parts)}." if parts else ""


def _sums(network: nn.Module) -> str:
    """Call parts whose forward has `x += y` or inplace=True in the mode `inplace.New`."""
    parts: list[tuple[str, Any]] = [(name, part) for name, part in network.named_modules() if _trained(part)]
    parts = [(name, part) for name, part in parts if not type(part).__module__.startswith(SOUND)]
    lines: dict[Any, Any] = {kind: writes(kind) for kind in {type(part) for _, part in parts}}
    fresh = [(name, part) for name, part in parts if lines[type(part)] is not None and "forward" not in part.__dict__]
    for _, part in fresh:
        part.forward = partial(anew, inspect.unwrap(type(part).forward).__code__, lines[type(part)], part.forward)
    return f"In-place sums make new tensors: {_count(fresh)}." if fresh else ""


def _positions(network: nn.Module) -> str:
    """Make CLIP's text encoder embed the positions of each row by itself, not once for all rows."""
    parts = [(name, part) for name, part in network.named_modules() if type(part).__name__ == "CLIPTextEmbeddings"]
    parts = [(name, part) for name, part in parts if _trained(part) and _expanded not in _hooks(part)]
    for _, part in parts:
        part.register_forward_pre_hook(_expanded, with_kwargs=True)
    return f"Text positions are embedded for each row: {_count(parts)}." if parts else ""


def _expanded(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Add position ids of each row to the arguments of the text embeddings."""
    ids = args[0] if args else kwargs.get("input_ids")
    if ids is None or len(args) > 1 or kwargs.get("position_ids") is not None:
        return None
    return args, kwargs | {"position_ids": torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)}


def _without_formula(network: nn.Module) -> str:
    """Return a sentence about layers for which Opacus uses torch.func. Nothing is changed."""
    from opacus.grad_sample import GradSampleHooks

    known = GradSampleHooks.GRAD_SAMPLERS
    parts = [(name, part) for name, part in network.named_modules() if _trained(part, recurse=False)]
    parts = [(name, part) for name, part in parts if type(part) not in known]
    return f"Layers without a formula in Opacus, for which torch.func is used: {_count(parts)}." if parts else ""


def _hooks(module: nn.Module) -> list[Any]:
    """Return the functions of the forward pre-hooks of a module."""
    return [getattr(hook, "func", hook) for hook in module._forward_pre_hooks.values()]


def _watch(network: nn.Module) -> None:
    """Check, in every forward pass, norms for groups of one value, and buffers for changes."""
    for name, module in network.named_modules():
        if isinstance(module, nn.GroupNorm | INSTANCE_NORMS) and _degenerate not in _hooks(module):
            module.register_forward_pre_hook(partial(_degenerate, name))
        if dict(module.named_buffers(recurse=False)) and not isinstance(module, BATCH_NORMS):
            _watch_buffers(module, name)


def _degenerate(name: str, module: Any, args: tuple[Tensor, ...]) -> None:
    """Raise InputError if a group of the norm has one value."""
    groups = getattr(module, "num_groups", None) or module.num_features
    if args[0].shape[1:].numel() == groups:
        raise InputError(
            f"private training: each group of {name} has one value, which the norm turns into 0, so the layers before "
            "it learn nothing; use larger images, or fewer groups"
        )


def _watch_buffers(module: nn.Module, name: str) -> None:
    if _before not in _hooks(module):
        module.register_forward_pre_hook(_before)
        module.register_forward_hook(partial(_after, name))


def _buffers(module: nn.Module) -> Iterator[tuple[str, int, int]]:
    for name, buffer in module.named_buffers(recurse=False):
        yield name, id(buffer), buffer._version


def _before(module: Any, args: Any) -> None:
    module.__dict__["_buffers_before"] = tuple(_buffers(module))


def _after(name: str, module: Any, args: Any, output: Any) -> None:
    if module.__dict__.pop("_buffers_before", None) not in (None, tuple(_buffers(module))) and module.training:
        raise InputError(
            f"private training: a forward pass changes a buffer of {name or 'the network'}, which keeps statistics "
            "of patients without noise; use a layer without running statistics"
        )
