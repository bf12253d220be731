"""What a network must be before it is trained privately, done to it in place and told; and that what was saved is that.

A unit's gradient must depend on no other unit, and nothing but weights may change while a network learns.

| found | done |
|---|---|
| BatchNorm that is trained, or normalises what is | group norm, at least four channels a group (arXiv 1803.08494) |
| BatchNorm in a frozen part | stays in evaluation mode |
| activations that write into their input, `x += y` | a new tensor: gradients taken one by one need the old one |
| CLIP's position embedding, one row for all | one row a text |
| one weight in two places, recurrent layers, attention of torch, running statistics | refused |
| a group of a group norm that has one value: its output is 0 | refused in the first forward |
| a buffer that a forward changes: statistics of patients without noise | refused in the first forward |
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medlt.files import read_tensors, tensor_bytes
from medlt.privacy.dpsgd.inplace import anew, writes
from medlt.types import InputError

BATCH_NORMS = nn.modules.batchnorm._BatchNorm
INSTANCE_NORMS = nn.modules.instancenorm._InstanceNorm
SOUND = ("diffusers.", "transformers.")
"""Whose forwards write into no layer's output, so that they train as they are: tests say so of those we use."""
RULES_OF_THEIR_OWN = "have no formula for gradients one by one in Opacus; torch.func takes theirs"


def prepare(network: nn.Module) -> tuple[str, ...]:
    """Change a network, in place, so that it can be trained privately; one plain sentence a change.

    Called again it finds nothing to change. Weights keep their names but those of a norm over the batch, whose running
    statistics go. Raises InputError, with the reason, for what cannot be made to work.
    """
    _refuse(network)
    told = (_norms(network), _frozen(network), _activations(network), _sums(network),
            _positions(network), _without_formula(network))  # fmt: skip
    _watch(network)
    return tuple(sentence for sentence in told if sentence)


def assert_reads_back(network: nn.Module, saved: Mapping[str, Tensor] | Path) -> None:
    """Raise InputError unless what was saved is what `network` holds in memory, to the bit, and is all of it.

    saved: tensors by the names of the network's state, as a fresh network has them after loading, or a safetensors
    file, or a folder with one. Of adapters (LoRA), the adapters' tensors alone will do.
    """
    where = "what was read back"
    if not isinstance(saved, Mapping):
        where, saved = str(saved), _read(Path(saved))
    held = network.state_dict()
    adapters = {name for name in held if "lora_" in name}
    missing = sorted((adapters or set(held)) - set(saved))
    other = sorted(name for name in saved if name not in held or not _same(held[name], saved[name]))
    if bad := missing + other:
        raise InputError(
            f"{where}: {len(bad)} tensors are missing or differ from the trained network, the first {bad[0]}; the "
            "training would not be what its ledger says: save again, and run this check"
        )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and tensor_bytes(a) == tensor_bytes(b)


def _read(place: Path) -> dict[str, Tensor]:
    files = [place] if place.is_file() else sorted(place.glob("*.safetensors"))
    if not files:
        raise InputError(f"{place} holds no safetensors; name the file, or the folder, that was saved")
    return {name: tensor for file in files for name, tensor in read_tensors(file).items()}


def _trained(module: nn.Module, recurse: bool = True) -> bool:
    return any(weight.requires_grad for weight in module.parameters(recurse))


def _count(found: Sequence[tuple[str, nn.Module]]) -> str:
    """Return how many, of what kinds, and the first's name."""
    kinds = Counter(type(module).__name__ for _, module in found)
    return f"{len(found)} ({', '.join(kinds)}; the first is {found[0][0] or 'the network itself'})"


def _refuse(network: nn.Module) -> None:
    """Raise InputError for layers that cannot be trained privately."""
    from opacus.validators import ModuleValidator

    if not _trained(network):
        raise InputError(
            "private training: no weight of the network is trainable; choose full training, or LoRA layers"
        )
    places: dict[nn.Parameter, list[str]] = {}
    for name, weight in network.named_parameters(remove_duplicate=False):
        if weight.requires_grad:
            places.setdefault(weight, []).append(name)
    if tied := [names for names in places.values() if len(names) > 1]:
        raise InputError(
            f"private training: one weight is used as {' and as '.join(tied[0])}; its gradient cannot be told apart by "
            "unit: untie them, or freeze one part"
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
    """Return groups of the group norm that stands in for a norm over the batch: at most 32, of four channels at least.

    Opacus takes up to 32 of one channel, which on a map of one pixel give nothing but 0.
    """
    most = max(1, min(32, channels // 4))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def _norms(network: nn.Module) -> str:
    """Return norms over the batch of trained parts become group norms; those without gain too, which Opacus' fixer
    leaves.
    """
    found = [(name, norm) for name, norm in network.named_modules() if isinstance(norm, BATCH_NORMS)]
    found = [(name, norm) for name, norm in found if _trained(_around(network, name))]
    for name, norm in found:
        fresh = nn.GroupNorm(groups_for(norm.num_features), norm.num_features, norm.eps, norm.affine)
        fresh.load_state_dict({own: weight for own, weight in norm.state_dict().items() if own in ("weight", "bias")})
        network.set_submodule(name, fresh.to(next(network.parameters())).train(norm.training))
    return f"Batch norms became group norms: {_count(found)}." if found else ""


def _around(network: nn.Module, name: str) -> nn.Module:
    """Return a norm, or the part it stands in where it has no weights of its own."""
    norm = network.get_submodule(name)
    return norm if norm.affine else network.get_submodule(name.rpartition(".")[0])


def _frozen(network: nn.Module) -> str:
    """Return batch norms that are left stand in frozen parts: `train` does nothing to them."""
    found = [(name, norm) for name, norm in network.named_modules() if isinstance(norm, BATCH_NORMS)]
    fresh = [(name, norm) for name, norm in found if "train" not in norm.__dict__]
    for _, norm in fresh:
        norm.eval()
        norm.train = partial(_stay, norm)  # type: ignore[method-assign, assignment]
    return f"Batch norms of frozen parts stay in evaluation mode: {_count(fresh)}." if fresh else ""


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def _activations(network: nn.Module) -> str:
    found = [(name, module) for name, module in network.named_modules() if getattr(module, "inplace", False) is True]
    for _, module in found:
        module.inplace = False
    return f"Activations no longer write into their input: {_count(found)}." if found else ""


def _sums(network: nn.Module) -> str:
    """Return parts whose forward says `x += y` or inplace=True are called under `inplace.New`; no class is changed."""
    parts: list[tuple[str, Any]] = [(name, part) for name, part in network.named_modules() if _trained(part)]
    parts = [(name, part) for name, part in parts if not type(part).__module__.startswith(SOUND)]
    lines: dict[Any, Any] = {kind: writes(kind) for kind in {type(part) for _, part in parts}}
    fresh = [(name, part) for name, part in parts if lines[type(part)] is not None and "forward" not in part.__dict__]
    for _, part in fresh:
        part.forward = partial(anew, inspect.unwrap(type(part).forward).__code__, lines[type(part)], part.forward)
    return f"Sums that were written into a tensor make a new one: {_count(fresh)}." if fresh else ""


def _positions(network: nn.Module) -> str:
    """Return CLIP's text encoder looks its positions up once for all rows: each row looks up its own now."""
    found = [(name, part) for name, part in network.named_modules() if type(part).__name__ == "CLIPTextEmbeddings"]
    found = [(name, part) for name, part in found if _trained(part) and _expanded not in _hooks(part)]
    for _, part in found:
        part.register_forward_pre_hook(_expanded, with_kwargs=True)
    return f"Positions of a text are looked up for each row: {_count(found)}." if found else ""


def _expanded(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    ids = args[0] if args else kwargs.get("input_ids")
    if ids is None or len(args) > 1 or kwargs.get("position_ids") is not None:
        return None
    return args, kwargs | {"position_ids": torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)}


def _without_formula(network: nn.Module) -> str:
    """Told, not changed."""
    from opacus.grad_sample import GradSampleHooks

    known = GradSampleHooks.GRAD_SAMPLERS
    found = [(name, part) for name, part in network.named_modules() if _trained(part, recurse=False)]
    found = [(name, part) for name, part in found if type(part) not in known]
    return f"Layers that {RULES_OF_THEIR_OWN}: {_count(found)}." if found else ""


def _hooks(module: nn.Module) -> list[Any]:
    return [getattr(hook, "func", hook) for hook in module._forward_pre_hooks.values()]


def _watch(network: nn.Module) -> None:
    """Look, in every forward, at norms that may see one value, and at buffers."""
    for name, module in network.named_modules():
        if isinstance(module, nn.GroupNorm | INSTANCE_NORMS) and _degenerate not in _hooks(module):
            module.register_forward_pre_hook(partial(_degenerate, name))
        if dict(module.named_buffers(recurse=False)) and not isinstance(module, BATCH_NORMS):
            _watch_buffers(module, name)


def _degenerate(name: str, module: Any, args: tuple[Tensor, ...]) -> None:
    groups = getattr(module, "num_groups", None) or module.num_features
    if args[0].shape[1:].numel() == groups:
        raise InputError(
            f"private training: each group of {name} has one value, of which a norm makes 0: nothing behind it learns; "
            "give larger images, or fewer groups"
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
            f"private training: a forward changes a buffer of {name or 'the network'}, which would keep what patients "
            "look like without noise; take a layer without running statistics"
        )
