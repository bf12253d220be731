"""Membership inference on a denoiser: whether its loss on an image reveals that the image was in the training.

The score is minus the loss at a few timesteps under a few fixed noises, the same for every image (Matsumoto, Miura &
Yanai, arXiv 2302.03262; Carlini et al., arXiv 2301.13188, sec. 5). Losses of different timesteps are brought to one
scale by the median and quartiles of all images together. The score of a patient is the mean over their images. The
conclusion is about patients; results for images are reported, too. A denoiser may have memorised transformed images, so
the audit of a run gives the scores of the best of several views (`medlt.privacy.audit.viewed`).

The measure is the TPR at a low FPR, with exact intervals, not the average accuracy (Carlini et al., arXiv 2112.03570).
With n held-out patients, an FPR below 1/n cannot be measured. Then the TPR at no false positive is reported, with the
highest true FPR that this allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medlt.diffusion.backbone import Backbone
from medlt.privacy.audit.rates import Share, area, auroc_difference, by_patient, share
from medlt.rng import noise_like, numpy_generator, seed_of
from medlt.types import InputError

TIMESTEPS = (50, 100, 200, 300, 500)
MOST = 1000  # patients on either side that are scored; as many resolve an FPR of 0.1 %
FEWEST = 50  # patients on either side, below which an AUC of 0.6 would not be detected


@torch.no_grad()
def loss_scores(
    backbone: Backbone, latents: Tensor, condition: Tensor | None = None, *, seed: int,
    timesteps: Sequence[int] = TIMESTEPS, noises: int = 2, batch: int = 64,
) -> np.ndarray:  # fmt: skip
    """Return minus the squared error on x0 at each timestep, averaged over `noises` fixed noises, [N,T].

    latents: [N,C,h,w] in the space of the backbone's training; condition: [N,...] of each row, default the null.
    """
    seeds = [seed_of(seed, "membership noise", k) for k in range(noises)]
    noise, abar = noise_like(seeds, latents.shape[1:]), backbone.noise.abar()
    out = np.zeros((len(latents), len(timesteps)))
    for start in range(0, len(latents), batch):
        rows = slice(start, start + batch)
        x0 = latents[rows].to(backbone.device)
        denoiser = backbone.denoiser(None if condition is None else condition[rows].to(backbone.device))
        for column, t in enumerate(timesteps):
            for one in noise.to(backbone.device):
                x_t = abar[t].sqrt() * x0 + (1 - abar[t]).sqrt() * one
                out[rows, column] -= (denoiser(x_t, t) - x0).square().flatten(1).mean(1).double().cpu().numpy() / noises
    return out


def some_patients(
    member: np.ndarray, patients: Sequence[str], rng: np.random.Generator, most: int = MOST
) -> np.ndarray:
    """Return the rows, sorted, of `most` random patients among members and as many others; all of a smaller side."""
    rows = [np.flatnonzero(member == inside) for inside in (True, False)]
    names = np.array([str(one) for one in patients])
    chosen = [rng.permutation(np.unique(names[side]))[:most] for side in rows]
    return np.sort(np.concatenate([s[np.isin(names[s], c)] for s, c in zip(rows, chosen, strict=True)]))


def calibrated(scores: np.ndarray) -> np.ndarray:
    """Return scores [N] from scores [N,T]: each column minus its median, over its interquartile range, averaged.

    Membership is not used.
    """
    low, middle, high = np.quantile(scores, [0.25, 0.5, 0.75], axis=0)
    return np.asarray(((scores - middle) / np.maximum(high - low, 1e-12)).mean(1))


class TprAtFpr(NamedTuple):
    """TPR with its exact interval at a threshold that `false_positives` of the others pass.

    fpr_high: the highest true FPR that this count allows (exact, same level). resolved: whether there are enough others
    for the requested FPR; if not, this is the TPR at no false positive.
    """

    tpr: float
    low: float
    high: float
    false_positives: int
    fpr_high: float
    resolved: bool


def tpr_at(inside: np.ndarray, outside: np.ndarray, fpr: float, level: float = 0.95) -> TprAtFpr:
    """Return the TPR of independent scores `inside` [n] at an FPR of at most `fpr` among `outside` [m].

    The threshold is the highest score of `outside` that must not pass; scores equal to it do not pass either. The
    intervals (Clopper & Pearson) are those of both rates at this threshold. Raises InputError if a side is empty.
    """
    inside, outside = np.asarray(inside, np.float64), np.asarray(outside, np.float64)
    if not len(inside) or not len(outside) or not 0 <= fpr < 1:
        raise InputError(f"{len(inside)} members, {len(outside)} others, fpr {fpr}; give one of each and 0 <= fpr < 1")
    allowed = int(fpr * len(outside) + 1e-9)
    threshold = np.sort(outside)[::-1][allowed]
    passing = int((outside > threshold).sum())
    rate = share(int((inside > threshold).sum()), len(inside), level, "exact")
    return TprAtFpr(*rate, passing, share(passing, len(outside), level, "exact").high, allowed >= 1)


@dataclass(frozen=True)
class Membership:
    """Result of a membership attack.

    images, patients: columns `member` and `score`, numbered, without ids; rates: one row for each unit and FPR; auc: by
    patient; image_auc: by image, with patients resampled; name: of the attack; control: AUC by patient of a model that
    was trained on none of them, which differs from 1/2 if members and others differ in kind; above: AUC minus that of
    the control, with the same patients resampled for both; views: of the images that were scored.
    """

    images: pd.DataFrame
    patients: pd.DataFrame
    rates: pd.DataFrame
    auc: Share
    image_auc: Share
    name: str
    control: Share | None = None
    above: Share | None = None
    views: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Number of training patients and of others."""
        inside = int(self.patients["member"].sum())
        return {"members": inside, "others": len(self.patients) - inside}

    @property
    def passed(self) -> bool | None:
        """False if members can be identified, True if not by this attack, None with too few patients."""
        rates = self.rates.loc["patient"]
        identified = self.auc.low > 0.5 if self.above is None else self.above.low > 0
        if identified or (rates["low"] > rates["fpr_high"]).any():
            return False
        return True if min(self.counts.values()) >= FEWEST else None

    @property
    def detectable(self) -> float:
        """The smallest AUC, or AUC above the control, that an interval as wide as this would exclude."""
        tested, nothing = (self.auc, 0.5) if self.above is None else (self.above, 0.0)
        return nothing + tested.value - tested.low

    @property
    def sentence(self) -> str:
        """The result as a sentence."""
        members, others = self.counts.values()
        verb = {
            True: "cannot be distinguished from", False: "CAN be distinguished from", None: "cannot be compared with",
        }[self.passed]  # fmt: skip
        parts = []
        for fpr, row in self.rates.loc["patient"].iterrows():
            where = f"{fpr:.1%} FPR" if row["resolved"] else "no false positive"
            parts.append(f"{row['tpr']:.3f} [{row['low']:.3f}, {row['high']:.3f}] at {where}")
            if not row["resolved"]:
                parts[-1] += f" ({others} others cannot resolve {fpr:.1%}; true FPR up to {row['fpr_high']:.1%})"
        beside = "" if self.control is None else f", of an untrained model {self.control}, difference {self.above}"
        result = f"{self.name}: {members} training patients {verb} {others} others"
        views = f"; best of these views: {', '.join(self.views)}" if self.views else ""
        compared = "AUC" if self.above is None else "difference of AUC"
        least = f"; the smallest {compared} it could have detected is {self.detectable:.3f}"
        return f"{result}; TPR {', '.join(parts)}; AUC {self.auc}{beside}{least}{views}"


def membership(
    scores: np.ndarray, member: np.ndarray, patients: Sequence[str], *, seed: int, name: str = "Loss",
    fprs: Sequence[float] = (0.001, 0.01), n_bootstrap: int = 1000, level: float = 0.95,
    control: np.ndarray | None = None, views: tuple[str, ...] = (),
) -> Membership:  # fmt: skip
    """Compare the scores [N] of images of `patients` [N] with their membership, bool [N].

    scores: higher means more likely a member; control: scores [N] of an untrained model of the same architecture, which
    show what the kind of the images alone reveals; views: names of the views that were scored. Raises InputError for
    scores that are not finite, patients on both sides, or an empty side.
    """
    scores, member = np.asarray(scores, np.float64), np.asarray(member, bool)
    if not scores.shape == member.shape == (len(patients),) or not np.isfinite(scores).all():
        raise InputError(
            f"scores {scores.shape}, members {member.shape} and {len(patients)} patients; give one finite each"
        )
    means, of = by_patient(scores, patients)
    inside = by_patient(member, patients)[0]
    if not np.isin(inside, (0, 1)).all():
        raise InputError(f"{(inside % 1 > 0).sum()} patients are on both sides; split by patient")
    whose = inside == 1
    units = {"patient": (means, whose), "image": (scores, member)}
    points = {(u, f): tpr_at(s[m], s[~m], f, level)._asdict() for u, (s, m) in units.items() for f in fprs}
    rates = pd.DataFrame.from_dict(points, orient="index").rename_axis(["unit", "fpr"])
    auc = area(whose, means, np.arange(len(means)), numpy_generator(seed, "patient auc"), n_bootstrap, level)
    image_auc = area(member, scores, of, numpy_generator(seed, "image auc"), n_bootstrap, level)
    images = pd.DataFrame({"member": member, "score": scores})
    beside = above = None
    if control is not None:
        untrained = by_patient(control, patients)[0]
        beside = area(
            whose, untrained, np.arange(len(untrained)), numpy_generator(seed, "patient auc"), n_bootstrap, level
        )
        above = auroc_difference(whose, means, untrained, numpy_generator(seed, "patient auc"), n_bootstrap, level)
    table = pd.DataFrame({"member": whose, "score": means})
    return Membership(images, table, rates, auc, image_auc, name, beside, above, views)
