"""Real images through the codec of a source: to measure its fingerprint, and as sources of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medlt import config as configs
from medlt.data.squares import square
from medlt.evaluation.arms import ExperimentRows
from medlt.evaluation.fingerprint import CodedImages, healthy
from medlt.evaluation.sources import SourceImages
from medlt.recipes._codec import decoder, make_codec
from medlt.recipes._cohort import Cohort
from medlt.recipes._privacy import private_fit
from medlt.recipes._setup import RunFolder
from medlt.rng import numpy_generator
from medlt.types import InputError

CHUNK = 32


def resized(images: Tensor, size: int) -> Tensor:
    """Return images uint8 [N,1,H,W] as squares uint8 [N,1,size,size], as they are read from files."""
    squares = [torch.from_numpy(square(one[0].numpy().astype(np.float32) / 255, size)) for one in images]
    return (torch.stack(squares)[:, None] * 255).round().to(torch.uint8) if squares else images[:, :, :size, :size]


@dataclass
class ThroughCodec:
    """Encode and decode real images of `cohort` with the codec of a source's run; the codec is loaded at the first use.

    own: the cohort of that run, whose rows the codec was trained on.
    """

    run: RunFolder[configs.RunConfig]
    own: Cohort
    cohort: Cohort

    def __call__(self, size: int, uids: Sequence[str]) -> Tensor:
        """Return images of real rows as the source's run would file them, uint8 [N,1,size,size]."""
        distinct = list(dict.fromkeys(uids))
        at = {uid: i for i, uid in enumerate(distinct)}
        with self.run.runtime.limited():
            coded = self._coded(self.cohort.images(self.cohort.manifest, self.run.config.size, distinct))
        return resized(coded, size)[[at[uid] for uid in uids]]

    def _coded(self, images: Tensor) -> Tensor:
        """Return images uint8 [N,1,S,S] decoded from their latents, in 8 bits."""
        codec = make_codec(self.run, self.own, private_fit(self.run, self.own))
        decode, done = decoder(self.run.runtime, codec), [images[:0]]
        for part in torch.split(images, CHUNK):
            with torch.no_grad():
                back = decode(codec.latents(codec.moments(part.float() / 255))).cpu()
            done.append((back.nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8))
            self.run.runtime.progress("through codec", sum(map(len, done)), len(images))
        return torch.cat(done)


def through_codec(run: RunFolder[configs.RunConfig], own: Cohort, cohort: Cohort) -> ThroughCodec | None:
    """Return the codec of a run for real images; None for a private run, and for pixels, which lose nothing."""
    unused = run.config.privacy is not None or real_pixels(run.config)
    return None if unused else ThroughCodec(run, own, cohort)


def real_pixels(config: configs.RunConfig) -> bool:
    """Return whether the latents of a run are the pixels themselves."""
    return isinstance(config.codec, configs.PixelsConfig)


def coded_images(
    cohort: Cohort, rows: ExperimentRows, sources: Mapping[str, SourceImages], size: int, seed: int
) -> CodedImages:
    """Return validation images without a tail finding through the codec of each source that has one."""
    at = healthy(rows, seed)
    uids = [rows.val.uids[i] for i in at]
    if not uids:
        return CodedImages()
    with_codec = {name: source for name, source in sources.items() if source.through_codec is not None}
    made: dict[int, Tensor] = {}
    for source in with_codec.values():
        if id(source.through_codec) not in made and source.through_codec is not None:
            made[id(source.through_codec)] = source.through_codec(size, uids)
    patients = cohort.val.rows["patient_id"].astype(str).loc[uids]
    by_source = {name: made[id(one.through_codec)] for name, one in with_codec.items()}
    return CodedImages(at, tuple(patients), by_source, frozenset(n for n, one in sources.items() if one.real_pixels))


def derived(name: str, given: configs.SourceConfig, base: SourceImages, cohort: Cohort, seed: int) -> SourceImages:
    """Return a source of real images through the codec of `base`, row by row beside its images.

    copies: the parents of its images, through the codec. negatives: its images, and as many train images without a tail
    finding through the codec, with their own labels. Raises InputError if the source has no codec.
    """
    if base.through_codec is None:
        raise InputError(f"sources.{name}: source {given.codec_of} has no codec to use; name another source")
    coded, column = base.through_codec, "tail_parent" if "tail_parent" in base.kept else "label_source"
    real = base.kept[column] if given.rows == "copies" else _negatives(base, cohort, seed)
    rows = base.kept.drop(columns="fold", errors="ignore").assign(**{column: real.to_numpy()})
    rows.index = pd.Index([f"{uid}-{given.rows}" for uid in rows.index], name="uid")
    labels = cohort.train.rows[base.findings].loc[real].set_index(rows.index)
    parent = rows[column].to_dict()

    def images(size: int, uids: Sequence[str]) -> Tensor:
        own, other = [uid for uid in uids if uid in parent], [uid for uid in uids if uid not in parent]
        order = {uid: i for i, uid in enumerate([*own, *other])}
        parts = [coded(size, [parent[uid] for uid in own])] if own else []
        return torch.cat([*parts, *([base.images(size, other)] if other else [])])[[order[uid] for uid in uids]]

    if given.rows == "copies":
        return replace(base, name=name, kept=rows, labels=labels, images=images, verifiers=None)
    kept = base.kept.drop(columns="fold", errors="ignore")
    both = pd.concat([kept, rows]), pd.concat([base.labels.loc[kept.index], labels])
    return replace(base, name=name, kept=both[0], labels=both[1], images=images, verifiers=None)


def _negatives(base: SourceImages, cohort: Cohort, seed: int) -> pd.Series:
    """Return a train uid without a tail finding for each image of the source, each once before any twice."""
    train = cohort.train.rows
    free = [str(uid) for uid in train.index[(train[list(cohort.tail)] == 0).all(axis=1)]]
    if not free:
        raise InputError("every train image has a tail finding, so there are no coded negatives; use rows: copies")
    order = numpy_generator(seed, "coded negatives").permutation(len(free))
    return pd.Series([free[order[i % len(free)]] for i in range(len(base.kept))], index=base.kept.index, dtype=object)
