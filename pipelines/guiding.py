"""The guides of a run's method, each with what it asks, which is learnt when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from medlt import config as configs
from medlt.chance import seed_of
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.codec import AutoencoderCodec
from medlt.diffusion.signals import Distance, between, l2
from medlt.synthesis.guides import Guide
from medlt.synthesis.longtail import LongtailGuide, pictures
from medlt.synthesis.minority import JepaGuide, Levels, MinorityGuide, reference_levels
from pipelines import learning, tuning
from pipelines.learnt import Learnt


def guides(ready: Learnt, chosen: Sequence[configs.GuideConfig], backbone: Backbone) -> tuple[Guide, ...]:
    """The guides of a config in their order."""
    return tuple(_guide(ready, one, backbone) for one in chosen)


def _guide(ready: Learnt, chosen: configs.GuideConfig, backbone: Backbone) -> Guide:
    if isinstance(chosen, configs.LongtailGuide):
        return longtail(ready, chosen, backbone)
    told = chosen.model_dump(include={"weight", "every", "window", "schedule"})
    if isinstance(chosen, configs.JepaGuide):
        return JepaGuide(**told, features=features(ready, backbone))
    distance = between(features(ready, backbone)) if chosen.distance == "features" else l2
    levels = _levels(ready, chosen, backbone, distance) if chosen.reference and chosen.weight else None
    return MinorityGuide(**told, probe=chosen.probe, distance=distance, reference=levels, rare=chosen.rare)


def longtail(ready: Learnt, chosen: configs.LongtailGuide, backbone: Backbone) -> LongtailGuide:
    """The predictor is asked of images decoded by the run's codec. Raises InputError for a codec that cannot learn."""
    codec = ready.latents.codec
    assert isinstance(codec, AutoencoderCodec)
    standardised = ready.latents.standardiser if backbone.space == "standardised" else None
    decode = pictures(codec, standardised, chosen.checkpointing)
    head = learning.predictor(ready.run, ready.real, ready.judges, ready.progress)
    told = chosen.model_dump(exclude={"kind", "checkpointing"})
    return LongtailGuide(decode=decode, predictor=head, **told)


def features(ready: Learnt, backbone: Backbone) -> Callable[[Tensor], Tensor]:
    """Features of latents as the backbone has them."""
    eyes = learning.eyes(ready.run, ready.real, ready.latents, ready.progress)
    if backbone.space == "standardised":
        return eyes.features
    return lambda z: eyes.features(ready.latents.standardiser.to(z))


def _levels(ready: Learnt, chosen: configs.MinorityGuide, backbone: Backbone, distance: Distance) -> Levels:
    """How rare the real train images of each finding are."""
    data = tuning.data(ready.real, ready.latents, "train", backbone.space)
    labels = torch.from_numpy(data.labels.astype("float32"))
    told, seeds = backbone.condition(labels, data.about), [seed_of("level", uid) for uid in data.uids]
    return reference_levels(
        backbone, data.latents(data.uids), told, labels, seeds, probe=chosen.probe, distance=distance
    )
