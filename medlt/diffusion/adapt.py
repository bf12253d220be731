"""Which weights of a network are trained: all, or low-rank additions to some layers (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from medlt import chance
from medlt.types import InputError

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "conv")
"""Of residual blocks and of the layers that change the size."""


@dataclass(frozen=True)
class Full:
    """All weights; the text encoder's too, where the network holds one, unless `text_encoder` is False."""

    text_encoder: bool = True


FULL = Full()


@dataclass(frozen=True)
class Lora:
    """W x + alpha / rank B A x, A and B of `rank`, on attention layers, with `conv` on convolutions too.

    `alpha` None is `rank`. B starts at 0, so training starts at the network as it is. The text encoder's attention is
    included where the network holds one, unless `text_encoder` is False. Raises InputError for a rank below 1.
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
        """Last parts of the names of the layers to adapt."""
        return TEXT if text else ATTENTION + (CONVOLUTIONS if self.conv else ())


How: TypeAlias = Full | Lora


def has_adapters(network: nn.Module) -> bool:
    """Whether peft layers are attached."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(module, BaseTunerLayer) for module in network.modules())


def _adapt(module: Any, how: Lora, text: bool) -> bool:
    """Attach adapters to the layers of `module` that `how` names; False if it has none."""
    from peft import LoraConfig, inject_adapter_in_model

    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    present = [end for end in how.targets(text) if any(f".{name}".endswith(f".{end}") for name in layers)]
    if not present:
        return False
    alpha = how.rank if how.alpha is None else how.alpha
    config: Any = LoraConfig(
        r=how.rank, lora_alpha=alpha, lora_dropout=how.dropout, init_lora_weights="gaussian", target_modules=present
    )  # fmt: skip
    if hasattr(module, "add_adapter"):
        module.add_adapter(config)
    else:
        inject_adapter_in_model(config, module)
    return True


def make_trainable(network: nn.Module, how: How, seed: int) -> None:
    """Set requires_grad, in place; LoRA's first A is drawn from the seed.

    Raises InputError if adapters are attached already, or LoRA finds no layer.
    """
    if has_adapters(network):
        raise InputError("the network carries LoRA layers already; load it anew, merged or without them")
    network.requires_grad_(isinstance(how, Full))
    text: nn.Module | None = getattr(network, "text_encoder", None)
    if isinstance(how, Lora):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(chance.seed_of(seed, "adapters"))
            parts = [part for part in network.children() if part is not text or how.text_encoder]
            found = [_adapt(part, how, part is text) for part in parts]
        if not any(found):
            raise InputError(f"LoRA finds no layer {', '.join(how.targets(False))} in the network; train it in full")
    elif text is not None:
        text.requires_grad_(how.text_encoder)
