"""Selection of the weights to train: all of them, or low-rank additions to some layers (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from medlt.rng import seed_of
from medlt.types import InputError

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "conv")
"""Convolutions of residual blocks and of the layers that change the resolution."""


@dataclass(frozen=True)
class FullFinetuning:
    """Train all weights, also those of a text encoder in the network unless `text_encoder` is False."""

    text_encoder: bool = True


FULL = FullFinetuning()


@dataclass(frozen=True)
class LoraFinetuning:
    """Train W x + alpha / rank B A x on attention layers, and with `conv` on convolutions too.

    A and B have `rank` rows and columns. `alpha` None means `rank`. B starts at 0, so the first output is that of the
    original network. The attention layers of a text encoder in the network are included unless `text_encoder` is False.
    Raises InputError for a rank below 1.
    """

    rank: int = 8
    alpha: float | None = None
    conv: bool = False
    dropout: float = 0.0
    text_encoder: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"LoRA rank is {self.rank}; give at least 1")
        if not 0 <= self.dropout < 1:
            raise InputError(f"LoRA dropout is {self.dropout}; give 0 up to, not including, 1")

    def targets(self, text: bool) -> tuple[str, ...]:
        """Return the last parts of the names of the layers to adapt."""
        return TEXT if text else ATTENTION + (CONVOLUTIONS if self.conv else ())


Finetuning: TypeAlias = FullFinetuning | LoraFinetuning


def has_adapters(network: nn.Module) -> bool:
    """Return True if peft layers are attached."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(module, BaseTunerLayer) for module in network.modules())


def _adapt(module: Any, finetuning: LoraFinetuning, text: bool) -> bool:
    """Attach adapters to the layers of `module` that `finetuning` selects. Return False if there are none."""
    from peft import LoraConfig, inject_adapter_in_model

    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    present = [end for end in finetuning.targets(text) if any(f".{name}".endswith(f".{end}") for name in layers)]
    if not present:
        return False
    alpha = finetuning.rank if finetuning.alpha is None else finetuning.alpha
    config: Any = LoraConfig(
        r=finetuning.rank, lora_alpha=alpha, lora_dropout=finetuning.dropout, init_lora_weights="gaussian",
        target_modules=present,
    )  # fmt: skip
    if hasattr(module, "add_adapter"):
        module.add_adapter(config)
    else:
        inject_adapter_in_model(config, module)
    return True


def make_trainable(network: nn.Module, finetuning: Finetuning, seed: int) -> None:
    """Set requires_grad of the weights, and attach LoRA layers, in place. LoRA's matrix A is drawn from the seed.

    Raises InputError if the network already has adapters, or if LoRA matches no layer.
    """
    if has_adapters(network):
        raise InputError("the network already has LoRA layers; load it again, merged or without them")
    network.requires_grad_(isinstance(finetuning, FullFinetuning))
    text: nn.Module | None = getattr(network, "text_encoder", None)
    if isinstance(finetuning, LoraFinetuning):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "adapters"))
            parts = [part for part in network.children() if part is not text or finetuning.text_encoder]
            adapted = [_adapt(part, finetuning, part is text) for part in parts]
        if not any(adapted):
            layers = ", ".join(finetuning.targets(False))
            raise InputError(f"LoRA: the network has no layer named {layers}; choose full fine-tuning")
    elif text is not None:
        text.requires_grad_(finetuning.text_encoder)
