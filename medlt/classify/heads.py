"""Heads for a long tail: cosines for LDAM, and tau-normalisation of a trained head.

tau-normalisation (Kang et al., arXiv 1910.09217, section 4.2) divides the weights w_c [D] of each finding by |w_c|^tau
and drops the bias. In a softmax, rare classes gain, because their weights stay short. tau is chosen on validation.

For sigmoids it does nothing: w_c h is multiplied by a positive number and shifted by one, the same for all images. AP
and AUROC of a finding do not change, and neither does any decision at p = 0.5. Only a comparison between findings would
change, which the multi-label task never makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medlt.classify.losses import SCALE
from medlt.classify.networks import Network, network

TAUS = tuple(round(0.1 * n, 1) for n in range(11))


class Cosine(nn.Linear):
    """Logits [B,K] as SCALE times the cosines of features and weights, for LDAM (arXiv 1906.07413)."""

    @classmethod
    def of(cls, head: nn.Linear) -> Cosine:
        """Return a head with the directions of `head` and without its bias."""
        cosine = cls(head.in_features, head.out_features, bias=False)
        cosine.weight.data.copy_(head.weight.data)
        return cosine.to(head.weight.device)

    def forward(self, input: Tensor) -> Tensor:
        """Return logits [B,K] of features [B,D] in float32: bfloat16 would round them by half a percent of 30."""
        with torch.autocast(input.device.type, enabled=False):
            return SCALE * F.linear(F.normalize(input.float()), F.normalize(self.weight))


def classifier_network(
    name: str, loss: str, findings: int, seed: int = 0, spec: Mapping[str, Any] | None = None
) -> Network:
    """Return a fresh network for a loss, with a head of cosines for "ldam". Raises InputError for an unknown name.

    spec: of pretrained weights, which are not loaded here.
    """
    with torch.random.fork_rng(devices=[]):
        net = network(name, findings, seed, spec)
        if loss == "ldam":
            net.head = Cosine.of(net.head)
    return net


@torch.no_grad()
def redraw(head: nn.Linear, seed: int) -> None:
    """Draw a head anew from `seed`, on any device; torch's global generator does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = nn.Linear(head.in_features, head.out_features, bias=head.bias is not None)
    head.load_state_dict(fresh.state_dict())


@torch.no_grad()
def tau_normalise(head: nn.Linear, tau: float) -> None:
    """Divide the weights of each finding by their norm to the power of tau, and set the bias to zero."""
    head.weight /= head.weight.norm(dim=1, keepdim=True).clamp(min=1e-12) ** tau
    if head.bias is not None:
        head.bias.zero_()


@torch.no_grad()
def best_tau(head: nn.Linear, features: Tensor, labels: np.ndarray) -> float:
    """Return the tau of TAUS with the best macro balanced accuracy of features [N,D] and one-hot labels [N,K].

    Ties go to the smallest tau. Rows with an unknown label are left out; without any row tau is 0.
    """
    known = ~np.isnan(labels).any(1)
    truth, weight = labels[known].argmax(1), head.weight.float().cpu()
    accuracies = []
    for tau in TAUS:
        scaled = weight / weight.norm(dim=1, keepdim=True).clamp(min=1e-12) ** tau
        right = (features[torch.from_numpy(known)] @ scaled.T).argmax(1).numpy() == truth
        accuracies.append(np.mean([right[truth == c].mean() for c in np.unique(truth)]) if len(truth) else 0.0)
    return TAUS[int(np.argmax(accuracies))]
