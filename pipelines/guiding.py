"""The guides of a run's method, each with what it asks, which is learnt when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from medlt import config as configs
from medlt.chance import seed_of
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.codec import AutoencoderCodec
from medlt.diffusion.signals import Distance, between, l2
from medlt.files import digest, read_tensors, write_tensors
from medlt.synthesis.guides import Guide
from medlt.synthesis.longtail import LongtailGuide, pictures
from medlt.synthesis.minority import JepaGuide, Levels, MinorityGuide, reference_levels
from pipelines import encoding, learning, tuning
from pipelines.learnt import Learnt

MOST = 200
"""Train positives of a finding by which its level is set: the mean of so many is good to 7 % of their spread."""


def guides(ready: Learnt, chosen: Sequence[configs.GuideConfig], backbone: Backbone) -> tuple[Guide, ...]:
    """The guides of a config in their order, without those of weight 0: nothing is learnt for what does nothing."""
    return tuple(_guide(ready, one, backbone) for one in chosen if one.weight)


def _guide(ready: Learnt, chosen: configs.GuideConfig, backbone: Backbone) -> Guide:
    if isinstance(chosen, configs.LongtailGuide):
        return longtail(ready, chosen, backbone)
    told = chosen.model_dump(include={"weight", "every", "window", "schedule"})
    if isinstance(chosen, configs.JepaGuide):
        return JepaGuide(**told, features=features(ready, backbone))
    distance = between(features(ready, backbone)) if chosen.distance == "features" else l2
    levels = _levels(ready, chosen, backbone, distance) if chosen.reference else None
    return MinorityGuide(**told, probe=chosen.probe, distance=distance, reference=levels, rare=chosen.rare)


def longtail(ready: Learnt, chosen: configs.LongtailGuide, backbone: Backbone) -> LongtailGuide:
    """The predictor is asked of images decoded by the run's codec."""
    codec = encoding.decoder(ready.run, ready.latents.codec).codec  # in the run's precision
    assert isinstance(codec, AutoencoderCodec)
    standardised = ready.latents.standardiser if backbone.space == "standardised" else None
    decode = pictures(codec, standardised, chosen.checkpointing)
    head = learning.predictor(ready.run, ready.real, ready.judges, ready.progress)
    told = chosen.model_dump(exclude={"kind", "checkpointing"})
    return LongtailGuide(decode=decode, predictor=head, **told)


def features(ready: Learnt, backbone: Backbone) -> Callable[[Tensor], Tensor]:
    """Features of latents as the backbone has them."""
    found = learning.latent_classifier(ready.run, ready.real, ready.latents, ready.progress)
    if backbone.space == "standardised":
        return found.features
    return lambda z: found.features(ready.latents.standardiser.to(z))


def _levels(ready: Learnt, chosen: configs.MinorityGuide, backbone: Backbone, distance: Distance) -> Levels:
    """How rare the real train images of each finding are, of at most `MOST` images a finding; kept for other runs."""
    data, seed = tuning.data(ready.real, ready.latents, "train", backbone.space), ready.run.config.seed
    seen_by = ready.run.told()["digests"]["latent_classifier"] if chosen.distance == "features" else None
    key = digest("levels", backbone.digest, data.digest(), chosen.probe, seen_by, seed, MOST)
    with ready.run.stage("levels") as folder:
        place = folder / f"{key}.safetensors"
        if not place.is_file():
            rows = few(data.labels, data.uids, seed)
            latents, known = data.rows(rows)
            assert known.labels is not None
            told, seeds = backbone.condition(known.labels, known.about), [seed_of("level", uid) for uid in known.uids]
            levels = reference_levels(
                backbone, latents, told, known.labels, seeds, probe=chosen.probe, distance=distance
            )
            write_tensors(place, vars(levels))
    ready.run.record(digests={"levels": key})
    return Levels(**read_tensors(place))


def few(labels: np.ndarray, uids: Sequence[str], seed: int) -> np.ndarray:
    """Row numbers, rising, of at most `MOST` positives of each finding [N,K], drawn by the seed and the uids alone."""
    order = np.argsort([seed_of(seed, "level", uid) for uid in uids], kind="stable")
    chosen = [order[np.asarray(column)[order] == 1][:MOST] for column in np.asarray(labels).T]
    return np.unique(np.concatenate(chosen))
