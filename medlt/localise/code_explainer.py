"""Compute codes, scores and class activation maps of images. The bytes of a row depend on that row alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from medlt.diffusion.batching import ROWS, fixed_batches
from medlt.sparse.cam import code_activation_map
from medlt.sparse.embedding import SimplicialCoder

Latents = Callable[[Sequence[str]], Tensor]
"""Uids -> standardised latents [N,C,h,w]."""


class CodeExplainer:
    """A coder, set to eval mode, applied to images by uid.

    latents: uids -> standardised latents; method: as in `medlt.sparse.cam`; rows: number of rows in one call of a
    network; max_images: number of images in memory at once, for the methods that take uids.
    """

    def __init__(
        self, coder: SimplicialCoder, latents: Latents, method: str = "gradcam", rows: int = ROWS, max_images: int = 64
    ) -> None:
        self.coder, self.latents, self.method, self.rows, self.max_images = (
            coder.eval(), latents, method, rows, max_images,
        )  # fmt: skip
        self.device = next(coder.parameters()).device
        no_grad = torch.no_grad()
        self._code = fixed_batches(no_grad(coder.code), rows)
        self._scores = fixed_batches(no_grad(lambda s: coder.classify(s).sigmoid()), rows)
        self._decode = fixed_batches(no_grad(coder.decode), rows)
        self._maps = fixed_batches(lambda s, finding: code_activation_map(coder, s, finding, method), rows)

    def standardised(self, uids: Sequence[str]) -> Tensor:
        """Return standardised latents, float32 [N,C,h,w], on the coder's device."""
        return self.latents([str(uid) for uid in uids]).float().to(self.device)

    def code(self, z: Tensor) -> Tensor:
        """Return codes [N,L,V,h,w] of standardised latents [N,C,h,w]."""
        return self._code(z)

    def decode(self, s: Tensor) -> Tensor:
        """Return standardised latents [N,C,h,w] of codes [N,L,V,h,w]."""
        return self._decode(s)

    def maps(self, s: Tensor, finding: np.ndarray) -> Tensor:
        """Return A_c [N,h,w] of codes for one finding (column number) a row; 0 everywhere if that is -1."""
        column = torch.from_numpy(np.asarray(finding, np.int64)).to(self.device)
        return self._maps(s, column.clamp_min(0)) * (column >= 0)[:, None, None]

    def scores_of(self, uids: Sequence[str]) -> np.ndarray:
        """Return probabilities of the classifier on codes, float32 [N,K]."""
        parts = [uids[i : i + self.max_images] for i in range(0, len(uids), self.max_images)]
        return np.concatenate([self._scores(self.code(self.standardised(part))).cpu().numpy() for part in parts])

    def maps_of(self, uids: Sequence[str], finding: np.ndarray) -> np.ndarray:
        """Return A_c flattened, float32 [N,h*w]; arguments as for `maps`."""
        parts = [slice(i, i + self.max_images) for i in range(0, len(uids), self.max_images)]
        maps = [self.maps(self.code(self.standardised(uids[part])), finding[part]) for part in parts]
        return torch.cat(maps).flatten(1).cpu().numpy()
