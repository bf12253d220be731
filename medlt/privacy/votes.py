"""Noisy votes of patients for synthetic images: the mechanism of Private Evolution (Lin et al., arXiv 2305.15560).

Each patient votes for the synthetic images that are nearest to their own. Only the noisy counts are used further:

| code | paper |
|---|---|
| thumbnails | the embedding network: here small pixels, which nobody was trained for |
| nearest, count_votes | the histogram of algorithm 2 |
| noisy | histogram + N(0, sigma^2) |
| shares | max(histogram - H, 0) over its sum: probabilities of the next draw |

All populations of a generation are one histogram [F,n] (finding, image). A patient's votes are a vector over all of its
bins, one count for each pair of an image and a finding that it has, divided by its Euclidean norm. So a patient adds a
vector of norm 1, or of norm 0 without a vote, however many images and findings they have: the histogram changes by at
most 1 in L2 if the patient is added or removed. Splitting the votes needs no draw, and gives more of them in total than
one image drawn per patient, at the same sensitivity.

Distances are exact: 8-bit values in float64, where every sum is a whole number below 2^53. So a vote depends on no
other patient, not even by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from medlt.files import digest_tensors, read_tensors
from medlt.privacy.dpsgd.randomness import Randomness
from medlt.types import InputError

STAGE = "evolution"
"""The stage of the votes in a ledger."""
SENSITIVITY = 1.0
ALL = 0
"""`max_images_per_patient` of the votes in a ledger: every image of a patient, at a joint norm of `SENSITIVITY`."""
PIECE = 1024


def thumbnails(images: Tensor, side: int) -> Tensor:
    """Return images [B,1,H,W] in [0,1] as uint8 [B,side*side], the mean of each cell."""
    small = interpolate(images.float(), (side, side), mode="area")
    return (small.clamp(0, 1) * 255).round().to(torch.uint8).flatten(1)


def nearest(real: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Return the number of the nearest of made uint8 [F,n,D] for real uint8 [N,D], int64 [N,F]; the first of equals."""
    length = np.square(made.astype(np.float64)).sum(2)
    result = np.empty((len(real), len(made)), np.int64)
    for start in range(0, len(real), PIECE):
        rows = real[start : start + PIECE].astype(np.float64)
        for f, images in enumerate(made):
            result[start : start + PIECE, f] = (length[f] - 2 * rows @ images.astype(np.float64).T).argmin(1)
    return result


def count_votes(nearest: np.ndarray, has: np.ndarray, owners: Sequence[str], size: int) -> np.ndarray:
    """Return the votes, float64 [F,size].

    nearest: int [N,F], see above; has: bool [N,F], whether an image has a finding and may vote for images of it;
    owners: the privacy unit of each image, N names.
    """
    findings = has.shape[1]
    units = np.unique(np.asarray(owners, dtype=str), return_inverse=True)[1] if len(has) else np.zeros(0, np.int64)
    row, finding = np.nonzero(has)
    votes = units[row] * (findings * size) + finding * size + nearest[row, finding]
    cells, counts = np.unique(votes, return_counts=True)
    unit, place = np.divmod(cells, findings * size)
    norms = np.sqrt(np.bincount(unit, np.square(counts.astype(np.float64))))
    return np.bincount(place, counts / norms[unit], findings * size).astype(np.float64).reshape(findings, size)


def noisy(votes: np.ndarray, noise_multiplier: float, randomness: Randomness) -> Tensor:
    """Return the votes with normal noise, float32 [F,n]: summed in float64 and rounded once, as in private training."""
    noise = randomness.normal(votes.shape, torch.float64)
    return (torch.from_numpy(votes) + SENSITIVITY * noise_multiplier * noise).float()


def shares(noisy_votes: Tensor, threshold: float) -> np.ndarray:
    """Return the probability of each image within its finding, float64 [F,n].

    threshold: H, in votes; it is subtracted, as in the published code, and what falls below 0 counts as 0. A finding
    without a vote above it has equal probabilities: see `drowned`. Raises InputError for a threshold below 0.
    """
    if threshold < 0:
        raise InputError(f"the threshold of votes is {threshold:g}; give 0 or more")
    kept = (noisy_votes.double() - threshold).clamp_min(0).numpy()
    total = kept.sum(1, keepdims=True)
    return np.where(total > 0, kept / np.where(total > 0, total, 1), 1 / kept.shape[1])


def drowned(noisy_votes: Tensor, threshold: float) -> np.ndarray:
    """Return for which findings no image has votes above the threshold, bool [F]."""
    return (noisy_votes.double() <= threshold).all(1).numpy()


def file_of(generation: int | str) -> str:
    """Return the name of the file of the noisy votes on a population."""
    return f"votes_{generation}.safetensors"


def read_votes(file: Path) -> Tensor:
    """Return noisy votes [F,n]. Raises InputError for a damaged file: its noise must not be drawn again."""
    try:
        return read_tensors(file)["votes"]
    except (OSError, KeyError, InputError):
        raise InputError(f"{file}: damaged; restore it, or start a new run, which costs budget again") from None


def digest_of(voted: Sequence[Tensor]) -> str:
    """Return the digest of the noisy votes of all generations, in their order."""
    return digest_tensors({str(generation): one for generation, one in enumerate(voted)})


def votes_digest(folder: Path) -> str:
    """Return the digest of the noisy votes in a folder. Raises InputError for a damaged file."""
    files = [file_of(generation) for generation in range(len(list(folder.glob(file_of("*")))))]
    return digest_of([read_votes(folder / name) for name in files])
