"""Gradients of units by Opacus: one per row in memory (hooks, functorch), or only their norms (ghost clipping).

Three problems of Opacus are handled here: see `attached`, `assert_adds_up` and `Ghost`.
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
    """Run the backward pass without two warnings of torch that do not apply.

    One is about a layer whose input needs no gradient: only the gradient of its output is read. The other is about a
    layer whose input is integers, which Opacus mistakes for mixed precision.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        warnings.filterwarnings("ignore", "In CPU autocast, but the target dtype is not supported")
        total.backward(retain_graph=retain_graph)


class Sampled:
    """Gradients of rows by Opacus; `functorch` uses vmap for every layer."""

    def __init__(self, network: nn.Module, functorch: bool = False) -> None:
        from opacus.grad_sample import GradSampleHooks

        self.network, self.weights, self.proved = network, list(trainable(network).values()), False
        self.hooks = attached(lambda: GradSampleHooks(network, loss_reduction="sum", force_functorch=functorch))

    def unit_gradients(self, loss: Loss, groups: Groups) -> list[Tensor]:
        try:
            _backward(groups.mean(loss()))
            gradients = [_of_units(weight, groups) for weight in self.weights]
            if not self.proved:
                assert_adds_up(self.weights, gradients)
                self.proved = True
            return gradients
        finally:
            _forget(self.network)

    def clipped(self, loss: Loss, groups: Groups, max_grad_norm: float) -> tuple[Tensor, list[Tensor]]:
        gradients = self.unit_gradients(loss, groups)
        norms = torch.stack([one.flatten(1).norm(dim=1) for one in gradients]).norm(dim=0)
        keep = coefficients(norms, max_grad_norm)
        return norms, [torch.tensordot(keep, one, 1) for one in gradients]

    def close(self) -> None:
        _detach(self.hooks)


def _of_units(weight: Any, groups: Groups) -> Tensor:
    """Return the gradients float32 [G, *weight] that Opacus stored on a weight; zeros if the loss does not reach it."""
    rows = getattr(weight, "_current_grad_sample", None)  # remains if one of two uses does not reach the loss
    rows = weight.grad_sample if rows is None else rows
    if rows is None:
        return torch.zeros((len(groups.sizes), *weight.shape), device=weight.device)
    check_rows(len(rows), groups)
    return groups.total(rows)


def assert_adds_up(weights: Sequence[Any], gradients: Sequence[Tensor], within: float = 0.05) -> None:
    """Raise InputError unless the gradients of units add up to the ordinary gradient of every weight.

    They do not if a weight is used outside of its layer, or if the formula of a layer does not cover its use. `within`
    is relative, and wide enough for 16-bit gradients.
    """
    little = 1e-5 * max(float(units.norm()) for units in gradients)
    for weight, units in zip(weights, gradients, strict=True):
        whole = torch.zeros_like(weight) if weight.grad is None else weight.grad
        if (units.sum(0) - whole).norm() > within * (whole.norm() + units.flatten(1).norm(dim=1).max()) + little:
            raise InputError(
                f"the gradients of units of a weight of shape {tuple(weight.shape)} do not add up to its gradient: it "
                "is used outside of its layer, or in a way Opacus does not support; use grad_sample_mode: bookkeeping"
            )


class Ghost:
    """Ghost clipping by Opacus. Its formulas see the rows of a unit as one longer sequence."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.weights = network, list(trainable(network).values())
        self.hooks = attached(lambda: _ghost_hooks(network))

    def clipped(self, loss: Loss, groups: Groups, max_grad_norm: float) -> tuple[Tensor, list[Tensor]]:
        try:
            self.hooks.groups = groups
            losses = loss()
            _backward(groups.mean(losses), retain_graph=True)
            norms = self._norms(len(groups.sizes))
            for weight in self.weights:
                weight.grad = None
            self.hooks.disable_hooks()
            _backward(groups.mean(losses * coefficients(norms, max_grad_norm)[groups.unit]))
            return norms, [torch.zeros_like(w) if w.grad is None else w.grad.float() for w in self.weights]
        finally:
            self.hooks.enable_hooks()
            _forget(self.network)

    def _norms(self, count: int) -> Tensor:
        """Return the norms [count] of the gradients of units over all weights."""
        norms = [getattr(weight, "_norm_sample", None) for weight in self.weights]
        for weight, norm in zip(self.weights, norms, strict=True):
            if norm is None and weight.grad is not None and bool(weight.grad.any()):
                raise InputError(
                    f"ghost clipping has no norm of a weight of shape {tuple(weight.shape)}: it is used outside of its "
                    "layer and would not be clipped; use grad_sample_mode: bookkeeping"
                )
        present = [one.float() for one in norms if one is not None]
        return torch.stack(present).norm(dim=0) if present else torch.zeros(count, device=self.weights[0].device)

    def unit_gradients(self, loss: Loss, groups: Groups) -> list[Tensor]:
        raise InputError(
            "ghost clipping computes no gradients of units; use grad_sample_mode: hooks, functorch or bookkeeping"
        )

    def close(self) -> None:
        _detach(self.hooks)


def _ghost_hooks(network: nn.Module) -> Any:
    """Return the ghost clipping hooks of Opacus, with norms of units in place of rows."""
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
                inputs = [self.groups.by_unit(one.flatten(1, -2) if one.ndim > 2 else one[:, None]) for one in inputs]
                backprops = self.groups.by_unit(backprops.flatten(1, -2) if backprops.ndim > 2 else backprops[:, None])
                for weight, norms in self.NORM_SAMPLERS[nn.Linear](module, inputs, backprops).items():
                    weight._norm_sample = norms
            else:
                sampler = self.GRAD_SAMPLERS.get(type(module), ft_compute_per_sample_gradient)
                for weight, rows in sampler(module, inputs, backprops).items():
                    weight._norm_sample = self.groups.total(rows).flatten(1).norm(dim=1)

        def capture_activations_hook(self, module: Any, inputs: Any, output: Any) -> None:
            if any(getattr(weight, "_forward_counter", 0) for weight in module.parameters()):
                raise InputError(
                    "ghost clipping does not work with a layer that is used twice; use grad_sample_mode: bookkeeping "
                    "or hooks"
                )
            super().capture_activations_hook(module, inputs, output)

    return Hooks(network, loss_reduction="sum")


def attached(make: Callable[[], Any]) -> Any:
    """Return the hooks of Opacus on the network. Raises InputError for layers that Opacus does not support.

    Opacus 1.6 unfolds the input of a convolution as if it were contiguous. An input that is channels last (as after the
    attention of diffusers) silently gives wrong gradients. So inputs are made contiguous first.
    """
    try:
        hooks = make()
    except NotImplementedError as error:
        raise InputError(f"{str(error)[:200]}; use grad_sample_mode: bookkeeping, or replace the layer") from None
    plain = hooks.rearrange_grad_samples

    def rearranged(**options: Any) -> tuple[list[Tensor], Tensor]:
        inputs, backprops = plain(**options)
        return [one.contiguous() for one in inputs], backprops.contiguous()

    hooks.rearrange_grad_samples = rearranged
    return hooks


def _detach(hooks: Any) -> None:
    """Remove the hooks and the stored activations."""
    hooks.cleanup()
    for part in hooks._module.modules():
        part.__dict__.pop("activations", None)


def _forget(network: Any) -> None:
    """Remove what a forward and backward pass stored: some layers may not have reached the loss."""
    for part in network.modules():
        part.__dict__.pop("activations", None)
        part.__dict__.pop("max_batch_len", None)
    for weight in network.parameters():
        weight.grad = None
        if weight.requires_grad:
            weight.grad_sample, weight._forward_counter = None, 0
            for name in ("_current_grad_sample", "_norm_sample"):
                weight.__dict__.pop(name, None)
