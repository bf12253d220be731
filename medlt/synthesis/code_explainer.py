"""How the coder sees images: codes, scores and class activation maps, each row's bytes a function of the row alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from medlt.diffusion.batching import ROWS, fixed_batches
from medlt.sparse.cam import code_activation_map
from medlt.sparse.embedding import SimplicialCoder

Latents = Callable[[Sequence[str]], Tensor]
"""uids to standardised latents, [N,C,h,w]."""


class CodeExplainer:
    """`coder` (put into eval mode) looking at `latents` by uid; `method` as in `medlt.sparse.cam`.

    Networks are called with `rows` rows at a time; of images asked for by uid, `held` are in memory at once.
    """

    def __init__(
        self, coder: SimplicialCoder, latents: Latents, method: str = "gradcam", rows: int = ROWS, held: int = 64
    ) -> None:
        self.coder, self.latents, self.method, self.rows, self.held = coder.eval(), latents, method, rows, held
        self.device = next(coder.parameters()).device
        no_grad = torch.no_grad()
        self._code = fixed_batches(no_grad(coder.code), rows)
        self._scores = fixed_batches(no_grad(lambda s: coder.classify(s).sigmoid()), rows)
        self._decode = fixed_batches(no_grad(coder.decode), rows)
        self._maps = fixed_batches(lambda s, finding: code_activation_map(coder, s, finding, method), rows)

    def see(self, uids: Sequence[str]) -> Tensor:
        """Standardised latents, float32 [N,C,h,w], on the coder's device."""
        return self.latents([str(uid) for uid in uids]).float().to(self.device)

    def code(self, z: Tensor) -> Tensor:
        """Codes [N,L,V,h,w] of standardised latents [N,C,h,w]."""
        return self._code(z)

    def decode(self, s: Tensor) -> Tensor:
        """Standardised latents [N,C,h,w] of codes [N,L,V,h,w]."""
        return self._decode(s)

    def maps(self, s: Tensor, finding: np.ndarray) -> Tensor:
        """A_c [N,h,w] of codes, for one finding (column) a row; 0 everywhere where that is -1."""
        column = torch.from_numpy(np.asarray(finding, np.int64)).to(self.device)
        return self._maps(s, column.clamp_min(0)) * (column >= 0)[:, None, None]

    def scores_of(self, uids: Sequence[str]) -> np.ndarray:
        """Probabilities of the classifier on codes, float32 [N,K]."""
        parts = [uids[i : i + self.held] for i in range(0, len(uids), self.held)]
        return np.concatenate([self._scores(self.code(self.see(part))).cpu().numpy() for part in parts])

    def maps_of(self, uids: Sequence[str], finding: np.ndarray) -> np.ndarray:
        """A_c flattened, float32 [N,h*w]; as `maps`."""
        parts = [slice(i, i + self.held) for i in range(0, len(uids), self.held)]
        found = [self.maps(self.code(self.see(uids[part])), finding[part]) for part in parts]
        return torch.cat(found).flatten(1).cpu().numpy()
