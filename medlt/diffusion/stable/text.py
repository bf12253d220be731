"""Conditions of Stable Diffusion: prompts as token ids, or as the last hidden states of the text encoder.

They equal StableDiffusionPipeline.encode_prompt of diffusers with clip_skip=None, except that a prompt that is too long
for the tokenizer is an error and not cut. Stable Diffusion 2.x uses the penultimate layer of its text encoder: its
files lack the last layer. So both versions are treated alike.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from medlt.diffusion.backbone import About
from medlt.diffusion.batching import fixed_batches
from medlt.diffusion.prompts import Prompts
from medlt.files import digest, digest_tensors
from medlt.types import InputError

LONGEST = 4096  # tokens; a tokenizer without a length has 10^30
KEPT = 1024  # embeddings in memory: 0.25 GB at [77,768], 0.3 GB at [77,1024]


class TokenConditioner:
    """Prompts as padded token ids [B,77] int64, for networks that contain the text encoder.

    Raises InputError if the tokenizer has no length, and for a prompt that is too long.
    """

    def __init__(self, tokenizer: Any, prompts: Prompts) -> None:
        self.tokenizer, self.prompts = tokenizer, prompts
        self.length = int(tokenizer.model_max_length)
        if self.length > LONGEST:
            raise InputError("the tokenizer has no model_max_length; add it (77) to its tokenizer_config.json")

    @cached_property
    def digest(self) -> str:
        """Digest of the settings of prompts and of the tokenizer."""
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        fixed = {k: v for k, v in backend.items() if k not in ("padding", "truncation")}  # those change with each call
        return digest("tokens", self.prompts.digest, fixed, self.length, self.tokenizer.pad_token_id)

    @cached_property
    def null(self) -> Tensor:
        """The ids of an empty prompt [77]."""
        return self.ids([""])[0]

    def __call__(self, labels: Tensor, about: Sequence[About] = ()) -> Tensor:
        """Return the condition of each row, see `medlt.diffusion.backbone.Conditioner`."""
        return self.ids(self.prompts(labels, about)).to(labels.device)

    def ids(self, prompts: Sequence[str]) -> Tensor:
        """Return the token ids [B,77] of prompts, on the CPU. Raises InputError for a prompt that is too long."""
        if not prompts:
            return torch.empty(0, self.length, dtype=torch.int64)
        rows = self.tokenizer(list(prompts), verbose=False).input_ids
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > self.length:
                raise InputError(
                    f"a prompt has {len(row)} tokens, but the text encoder reads {self.length}: {prompt[:60]!r}...; "
                    "shorten prompts.template or prompts.words, or lower prompts.most"
                )
        return torch.tensor([row + [self.tokenizer.pad_token_id] * (self.length - len(row)) for row in rows])


class TextConditioner:
    """Prompts as last hidden states of a frozen text encoder, float32 [B,77,D] on its device.

    Each prompt is encoded once, in a separate call on one thread, so that on a CPU its bytes depend on the prompt only
    (medlt.diffusion.batching). The latest 1024 are kept for all threads, so the weights must not change. Raises
    InputError if tokenizer and text encoder do not fit.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any, prompts: Prompts) -> None:
        self.tokens, self.text_encoder, self.prompts = TokenConditioner(tokenizer, prompts), text_encoder, prompts
        length, size = text_encoder.config.max_position_embeddings, text_encoder.config.vocab_size
        if self.tokens.length > length or len(tokenizer) > size:
            raise InputError(
                f"the tokenizer has length {self.tokens.length} and {len(tokenizer)} tokens, the text encoder {length} "
                f"and {size}; use both from the same model"
            )
        self._encoded: dict[str, Tensor] = {}
        self._lock = Lock()

    @cached_property
    def digest(self) -> str:
        """Digest of the settings of prompts, the tokenizer and the weights of the text encoder."""
        return digest("text", self.tokens.digest, digest_tensors(self.text_encoder.state_dict()))

    @property
    def null(self) -> Tensor:
        """The embedding of an empty prompt [77,D]."""
        return self.embeddings([""])[0]

    def __call__(self, labels: Tensor, about: Sequence[About] = ()) -> Tensor:
        """Return the condition of each row, see `medlt.diffusion.backbone.Conditioner`."""
        return self.embeddings(self.prompts(labels, about))

    def embeddings(self, prompts: Sequence[str]) -> Tensor:
        """Return the embeddings [B,77,D] of prompts."""
        with self._lock:
            known = {prompt: self._encoded[prompt] for prompt in prompts if prompt in self._encoded}
            if missing := list(dict.fromkeys(prompt for prompt in prompts if prompt not in known)):
                rows = fixed_batches(self._encode, 1)(self.tokens.ids(missing).to(self.text_encoder.device))
                known |= dict(zip(missing, rows.cpu(), strict=True))
            kept = {prompt: row for prompt, row in self._encoded.items() if prompt not in known} | known
            self._encoded = dict(list(kept.items())[-KEPT:])
        width = self.text_encoder.config.hidden_size
        empty = torch.empty(0, self.tokens.length, width)
        return (torch.stack([known[prompt] for prompt in prompts]) if prompts else empty).to(self.text_encoder.device)

    @torch.no_grad()
    def _encode(self, ids: Tensor) -> Tensor:
        return hidden_states(self.text_encoder, ids, self.tokens.tokenizer.eos_token_id).float()


def hidden_states(text_encoder: Any, ids: Tensor, eos: int) -> Tensor:
    """Return the last hidden states [B,77,D] of token ids [B,77].

    Padding, after the first `eos`, is masked only if the text encoder has use_attention_mask, as in diffusers.
    """
    ids, mask = ids.to(text_encoder.device), None
    if getattr(text_encoder.config, "use_attention_mask", None):
        end = (ids == eos).int().argmax(1, keepdim=True)
        mask = (torch.arange(ids.shape[1], device=ids.device) <= end).long()
    states: Tensor = text_encoder(ids, attention_mask=mask).last_hidden_state
    return states
