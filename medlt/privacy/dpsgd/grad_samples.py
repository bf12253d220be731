"""Gradients of units by Opacus: held one a row (hooks, functorch), or only their norms (ghost clipping).

Three of its traps are kept from the caller: see `attached`, `assert_adds_up` and `Ghost`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medlt.privacy.dpsgd.groups import Groups, Loss, check_rows, coefficients, trainable
from medlt.types import InputError


def _backward(total: Any, retain_graph: bool = False) -> None:
    """Without torch's remarks on a layer whose input needs no gradient, and on one whose input is words.

    Of the first the output's gradient is all that is read; Opacus takes the second for mixed precision, in vain.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        warnings.filterwarnings("ignore", "In CPU autocast, but the target dtype is not supported")
        total.backward(retain_graph=retain_graph)


class Sampled:
    """Opacus' gradients one by one; `functorch` takes every layer by vmap."""

    def __init__(self, network: nn.Module, functorch: bool = False) -> None:
        from opacus.grad_sample import GradSampleHooks

        self.network, self.weights, self.proved = network, list(trainable(network).values()), False
        self.hooks = attached(lambda: GradSampleHooks(network, loss_reduction="sum", force_functorch=functorch))

    def apart(self, loss: Loss, groups: Groups) -> list[Tensor]:
        try:
            _backward(groups.mean(loss()))
            found = [_of_units(weight, groups) for weight in self.weights]
            if not self.proved:
                assert_adds_up(self.weights, found)
                self.proved = True
            return found
        finally:
            _forget(self.network)

    def clipped(self, loss: Loss, groups: Groups, clip: float) -> tuple[Tensor, list[Tensor]]:
        found = self.apart(loss, groups)
        norms = torch.stack([one.flatten(1).norm(dim=1) for one in found]).norm(dim=0)
        keep = coefficients(norms, clip)
        return norms, [torch.tensordot(keep, one, 1) for one in found]

    def close(self) -> None:
        _detach(self.hooks)


def _of_units(weight: Any, groups: Groups) -> Tensor:
    """Return gradients float32 [G, *weight] of what Opacus left on a weight; zeros where the loss does not reach it."""
    rows = getattr(weight, "_current_grad_sample", None)  # left where one of two uses does not reach the loss
    rows = weight.grad_sample if rows is None else rows
    if rows is None:
        return torch.zeros((len(groups.sizes), *weight.shape), device=weight.device)
    check_rows(len(rows), groups)
    return groups.total(rows)


def assert_adds_up(weights: Sequence[Any], found: Sequence[Tensor], within: float = 0.05) -> None:
    """Raise InputError unless units' gradients add up to the ordinary gradient, of every weight.

    They do not where a weight is used outside of its layer, or a layer's formula does not hold for how it is used.
    `within` is relative, and wide: of 16-bit gradients too.
    """
    little = 1e-5 * max(float(units.norm()) for units in found)
    for weight, units in zip(weights, found, strict=True):
        whole = torch.zeros_like(weight) if weight.grad is None else weight.grad
        if (units.sum(0) - whole).norm() > within * (whole.norm() + units.flatten(1).norm(dim=1).max()) + little:
            raise InputError(
                f"units' gradients of a weight of shape {tuple(weight.shape)} do not add up to its gradient: it is "
                "used outside of its layer, or in a way Opacus does not know; choose bookkeeping"
            )


class Ghost:
    """Opacus' ghost clipping; the rows of a unit are one longer sequence to its formulas."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.weights = network, list(trainable(network).values())
        self.hooks = attached(lambda: _ghost_hooks(network))

    def clipped(self, loss: Loss, groups: Groups, clip: float) -> tuple[Tensor, list[Tensor]]:
        try:
            self.hooks.groups = groups
            losses = loss()
            _backward(groups.mean(losses), retain_graph=True)
            norms = self._norms(len(groups.sizes))
            for weight in self.weights:
                weight.grad = None
            self.hooks.disable_hooks()
            _backward(groups.mean(losses * coefficients(norms, clip)[groups.unit]))
            return norms, [torch.zeros_like(w) if w.grad is None else w.grad.float() for w in self.weights]
        finally:
            self.hooks.enable_hooks()
            _forget(self.network)

    def _norms(self, count: int) -> Tensor:
        found = [getattr(weight, "_norm_sample", None) for weight in self.weights]
        for weight, norm in zip(self.weights, found, strict=True):
            if norm is None and weight.grad is not None and bool(weight.grad.any()):
                raise InputError(
                    f"ghost clipping has no norm of a weight of shape {tuple(weight.shape)}: it is used outside of its "
                    "layer, and would not be clipped; choose bookkeeping"
                )
        told = [one.float() for one in found if one is not None]
        return torch.stack(told).norm(dim=0) if told else torch.zeros(count, device=self.weights[0].device)

    def apart(self, loss: Loss, groups: Groups) -> list[Tensor]:
        raise InputError("ghost clipping never holds a unit's gradient; take hooks, functorch or book")

    def close(self) -> None:
        _detach(self.hooks)


def _ghost_hooks(network: nn.Module) -> Any:
    """Return Opacus' ghost clipping hooks with norms a unit in place of a row."""
    from opacus.grad_sample import GradSampleHooksFastGradientClipping as Ghosts
    from opacus.grad_sample.functorch import ft_compute_per_sample_gradient

    class Hooks(Ghosts):  # type: ignore[misc]
        groups: Groups

        def capture_backprops_hook(
            self, module: Any, _input: Any, output: Any, loss_reduction: str, batch_first: bool
        ) -> None:
            if not self.hooks_enabled:
                return
            inputs, backprops = self.rearrange_grad_samples(
                module=module, backprops=output[0].detach(), loss_reduction=loss_reduction, batch_first=batch_first
            )
            check_rows(len(backprops), self.groups)
            if type(module) is nn.Linear:
                inputs = [self.groups.apart(one.flatten(1, -2) if one.ndim > 2 else one[:, None]) for one in inputs]
                backprops = self.groups.apart(backprops.flatten(1, -2) if backprops.ndim > 2 else backprops[:, None])
                for weight, norms in self.NORM_SAMPLERS[nn.Linear](module, inputs, backprops).items():
                    weight._norm_sample = norms
            else:
                sampler = self.GRAD_SAMPLERS.get(type(module), ft_compute_per_sample_gradient)
                for weight, rows in sampler(module, inputs, backprops).items():
                    weight._norm_sample = self.groups.total(rows).flatten(1).norm(dim=1)

        def capture_activations_hook(self, module: Any, inputs: Any, output: Any) -> None:
            if any(getattr(weight, "_forward_counter", 0) for weight in module.parameters()):
                raise InputError("ghost clipping cannot take a layer that is used twice; choose bookkeeping or hooks")
            super().capture_activations_hook(module, inputs, output)

    return Hooks(network, loss_reduction="sum")


def attached(make: Callable[[], Any]) -> Any:
    """Return Opacus' hooks on the network. Raises InputError for layers it does not take.

    Opacus 1.6 unfolds a convolution's input as if it lay row by row in memory; one that lies channels last (as behind
    diffusers' attention) gives wrong gradients without a word. So inputs are laid out before it sees them.
    """
    try:
        hooks = make()
    except NotImplementedError as error:
        raise InputError(f"{str(error)[:200]}; choose bookkeeping, or replace the layer") from None
    plain = hooks.rearrange_grad_samples

    def rearranged(**told: Any) -> tuple[list[Tensor], Tensor]:
        inputs, backprops = plain(**told)
        return [one.contiguous() for one in inputs], backprops.contiguous()

    hooks.rearrange_grad_samples = rearranged
    return hooks


def _detach(hooks: Any) -> None:
    hooks.cleanup()
    for part in hooks._module.modules():
        part.__dict__.pop("activations", None)


def _forget(network: Any) -> None:
    """Take away what a forward and backward pass left: a layer may not have reached the loss."""
    for part in network.modules():
        part.__dict__.pop("activations", None)
        part.__dict__.pop("max_batch_len", None)
    for weight in network.parameters():
        weight.grad = None
        if weight.requires_grad:
            weight.grad_sample, weight._forward_counter = None, 0
            for name in ("_current_grad_sample", "_norm_sample"):
                weight.__dict__.pop(name, None)
