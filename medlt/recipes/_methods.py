"""The method of a run, built from its config and from the trained parts: start, guidance and extra losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from medlt import config as configs
from medlt import synthesis
from medlt.checks.bands import limits
from medlt.checks.folds import CrossFitClassifiers
from medlt.classify.latents import LatentClassifier
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.batching import fixed_batches
from medlt.diffusion.cache import Latents
from medlt.diffusion.cbdm import ClassBalancing
from medlt.diffusion.codec import DifferentiableCodec
from medlt.diffusion.in_band_loss import AidLoss
from medlt.diffusion.losses import ExtraLoss
from medlt.diffusion.schedulers import factory
from medlt.diffusion.signals import Distance, between, l2
from medlt.files import digest, read_tensors, write_tensors
from medlt.plugins import METHODS, PluginError
from medlt.recipes._codec import decoder, gradient_codec
from medlt.recipes._cohort import ABOUT, Cohort
from medlt.recipes._denoiser import Losses, labelled_latents, no_losses, train_denoiser
from medlt.recipes._localise import RunLocalisation, localise
from medlt.recipes._models import Learnt, learn_sparse_code, train_guidance_classifier, train_latent_classifier
from medlt.recipes._privacy import independent_rows, withheld
from medlt.recipes._setup import RunFolder
from medlt.rng import seed_of
from medlt.sparse.embedding import SimplicialCoder
from medlt.synthesis.composite import Difference, Pixels, StartDecoder
from medlt.synthesis.edit import ImageEdit
from medlt.synthesis.from_noise import FromNoise
from medlt.synthesis.fusion import LatentFusion
from medlt.synthesis.guides import Guide
from medlt.synthesis.lesions import Variety
from medlt.synthesis.longtail import LongtailGuide, differentiable_decoder
from medlt.synthesis.minority import JepaGuide, MinorityGuide, ReferenceLevels, reference_levels
from medlt.synthesis.parts import MethodParts, PluginMethod
from medlt.synthesis.plan import PlanSettings
from medlt.synthesis.plan import TrainTable as TrainTable
from medlt.synthesis.recompose import RecomposeSettings, Recomposition
from medlt.types import Codec, InputError, Synthesizer

MOST = 200
"""Number of train positives that set a finding's reference level; the error of their mean is 7 % of the SD."""

FromNoiseSettings = configs.FromNoiseConfig | configs.Diffult | configs.Minority | configs.Longtail


def train_table(run: RunFolder[configs.RunConfig], cohort: Cohort, verifiers: CrossFitClassifiers) -> TrainTable:
    """Return the train rows for a method; in a data-independent run, one made-up row per finding instead."""
    rows, findings = cohort.train.rows, cohort.findings
    if run.config.data_independent:
        return independent_rows(cohort.requested, findings)
    known = [name for name in ("patient_id", *ABOUT) if name in rows]
    return TrainTable(rows[[*known, *findings]].assign(fold=verifiers.fold), findings, cohort.tail)


@dataclass(frozen=True)
class Built:
    """A method, model name -> digest of the models that make its images, and the measured strength of each guide.

    strengths: (weight, response) of the guides in the order of the config; empty if nothing was measured.
    """

    method: Synthesizer
    models: Mapping[str, str]
    strengths: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunParts(MethodParts):
    """The parts of medlt's own methods, which also read the run and what it trained."""

    run: RunFolder[configs.RunConfig]
    learnt: Learnt


def build_method(run: RunFolder[configs.RunConfig], learnt: Learnt) -> Built:
    """Train or load the models of the config's method, and return the method with their digests."""
    chosen, parts = run.config.method, method_parts(run, learnt)
    method = METHODS.build(chosen.kind, chosen, parts)
    if not isinstance(method, Synthesizer):
        got = f"built a {type(method).__name__}, which is no medlt.types.Synthesizer"
        raise PluginError(f"{METHODS.where(chosen.kind)} {got}; correct the package")
    if METHODS.package(chosen.kind):
        method = PluginMethod(chosen.kind, method)
    return Built(method, parts.models)


def method_parts(run: RunFolder[configs.RunConfig], learnt: Learnt) -> RunParts:
    """Return the parts of a method. Those that are trained are trained when the method calls for them."""
    cohort, latents, private, targets = learnt.cohort, learnt.latents, learnt.private, run.config.targets
    models = {"codec": latents.codec.digest, **run.config.plugin_versions}

    def denoiser(losses: Losses = no_losses) -> Backbone:
        backbone = train_denoiser(run, cohort, latents, private, losses)
        models["denoiser"] = backbone.digest
        return backbone

    def guides(chosen: Sequence[configs.GuideConfig], backbone: Backbone) -> tuple[Guide, ...]:
        built, named = build_guides(run, learnt, chosen, backbone)
        models.update(named)
        return built

    def sparse_code() -> SimplicialCoder:
        coder = learn_sparse_code(run, cohort, latents, private)
        models["sparse"] = coder.digest
        return coder

    channels, height, width = latents.cache.shape[-3:]
    return RunParts(
        train=train_table(run, cohort, learnt.verifiers),
        latents=withheld if run.config.data_independent else latents,
        pixels=train_pixels(run, cohort),
        shape=(channels // 2, height, width),
        standardiser=latents.standardiser,
        decode=decoder(run.runtime, latents.codec),
        num_candidates=targets.num_candidates * (1 + targets.max_retries),
        runtime=run.runtime,
        train_denoiser=denoiser,
        build_guides=guides,
        learn_sparse_code=sparse_code,
        models=models,
        run=run,
        learnt=learnt,
    )


def train_pixels(run: RunFolder[configs.RunConfig], cohort: Cohort) -> Pixels:
    """Return the function from uids of train rows to their images [B,1,S,S] in [0,1]; withheld in a private run."""

    def read(uids: Sequence[str]) -> Tensor:
        at = {uid: i for i, uid in enumerate(dict.fromkeys(uids))}
        return cohort.images(cohort.train, run.config.image_size, list(at))[[at[uid] for uid in uids]] / 255

    return withheld if run.config.privacy is not None else read


def difference(
    run: RunFolder[configs.RunConfig], learnt: Learnt, chosen: configs.Fusion | configs.Edit
) -> Difference | None:
    """Return what difference decoding needs; None if the config decodes plainly, and in a private run."""
    if chosen.decoding == "plain" or run.config.privacy is not None:
        return None
    starts = StartDecoder(decoder(run.runtime, learnt.latents.codec))
    edge = chosen.model_dump(include={"feather", "seam"})
    return Difference(train_pixels(run, learnt.cohort), starts, **edge)


def fusion_method(chosen: configs.Fusion, parts: RunParts) -> LatentFusion:
    """Train or load the sparse code, the localisation and the denoiser, and return latent fusion."""
    located = localise(parts.run, parts.learnt, chosen, parts.learn_sparse_code())
    parts.models["localise"] = located.digest
    backbone = parts.train_denoiser()
    guides = parts.build_guides(chosen.guidance, backbone)
    return latent_fusion(parts.run, parts.learnt, chosen, located, backbone, guides)


def recompose_method(chosen: configs.Recompose, parts: RunParts) -> Recomposition:
    """Return recomposition. Without a strength no denoiser is trained, and without a stage `code` no sparse code."""
    coder = parts.learn_sparse_code() if "code" in chosen.localise.order else None
    located = localise(parts.run, parts.learnt, chosen, coder)
    parts.models["localise"] = located.digest
    varied = Variety(scale=chosen.scale, rotation=chosen.rotation, shift=chosen.shift, reflect=chosen.reflect)
    settings = RecomposeSettings(
        variety=varied, num_candidates=parts.num_candidates,
        **chosen.model_dump(include={"variant", "area_mean", "area_sd", "matched", "side"}),
    )  # fmt: skip
    return Recomposition(
        train=parts.train,
        difference=Difference(parts.pixels, StartDecoder(parts.decode), chosen.feather, chosen.seam),
        where=located.localisation,
        size=parts.run.config.image_size,
        settings=settings,
        **(refinement(chosen, parts) if chosen.strength else {}),
    )


def refinement(chosen: configs.Recompose, parts: RunParts) -> dict[str, Any]:
    """Train or load the denoiser, and return what recomposition needs of it."""
    backbone = parts.train_denoiser()
    return {
        "backbone": backbone,
        "standardiser": parts.standardiser,
        "encode": encoder(parts.learnt.latents.codec, parts.run.config.size),
        "decode": parts.decode,
        "scheduler": factory(chosen.scheduler, chosen.num_inference_steps, backbone.noise),
        "strength": chosen.strength,
        "guidance_scale": chosen.guidance_scale,
        "guidance_interval": chosen.guidance_interval,
        "guidance": parts.build_guides(chosen.guidance, backbone),
    }


def encoder(codec: Codec, size: int) -> Callable[[Tensor], Tensor]:
    """Return the function from images [B,1,S,S] in [0,1] to codec latents of them at `size`, on the CPU."""
    encode = fixed_batches(torch.no_grad()(lambda images: codec.latents(codec.moments(images))))
    device = getattr(codec, "device", torch.device("cpu"))
    return lambda images: encode(interpolate(images, (size, size), mode="area").to(device)).cpu()


def conditional_method(chosen: FromNoiseSettings | configs.Edit, parts: RunParts) -> Synthesizer:
    """Train or load the denoiser, with the extra losses of DiffuLT, and return a method under real label vectors."""
    backbone = parts.train_denoiser(extra_losses(parts.run, parts.learnt))
    return conditional(parts.run, parts.learnt, chosen, backbone, parts.build_guides(chosen.guidance, backbone))


def latent_fusion(
    run: RunFolder[configs.RunConfig], learnt: Learnt, chosen: configs.Fusion, located: RunLocalisation,
    backbone: Backbone, guides: tuple[Guide, ...] = (),
) -> LatentFusion:  # fmt: skip
    """Return latent fusion (arXiv 2405.01705). Both parents of an image come from one fold of the verifiers."""
    assert located.coder is not None
    targets, latents = run.config.targets, learnt.latents
    plan_settings = PlanSettings(
        metric=chosen.pairing,
        neighbours=chosen.neighbours,
        threshold_mean=chosen.threshold_mean,
        threshold_sd=chosen.threshold_sd,
        area_mean=chosen.area_mean,
        area_sd=chosen.area_sd,
        num_candidates=targets.num_candidates * (1 + targets.max_retries),
    )
    return LatentFusion(
        train=train_table(run, learnt.cohort, learnt.verifiers),
        coder=located.coder,
        localisation=located.localisation,
        latents=latents,
        standardiser=latents.standardiser,
        backbone=backbone,
        decode=decoder(run.runtime, latents.codec),
        scheduler=factory(chosen.scheduler, chosen.num_inference_steps, backbone.noise),
        plan_settings=plan_settings,
        cam=chosen.cam,
        strength=chosen.strength,
        renoise=chosen.renoise,
        guidance_scale=chosen.guidance_scale,
        guidance_interval=chosen.guidance_interval,
        guidance=guides,
        labels=chosen.labels,
        rule=chosen.rule,
        difference=difference(run, learnt, chosen),
    )


def conditional(
    run: RunFolder[configs.RunConfig], learnt: Learnt, chosen: FromNoiseSettings | configs.Edit, backbone: Backbone,
    guides: tuple[Guide, ...] = (),
) -> Synthesizer:  # fmt: skip
    """Return a method that samples under the label vectors of real rows; an image's fold is that of its row."""
    latents, shared = learnt.latents, sampling_parts(run, learnt, chosen, backbone, guides)
    if isinstance(chosen, configs.Edit):
        return ImageEdit(
            latents=latents,
            strength=chosen.strength,
            mixed=chosen.mixed,
            difference=difference(run, learnt, chosen),
            **shared,
        )
    height, width = latents.cache.shape[-2:]
    kind: type[FromNoise] = synthesis.METHODS[chosen.kind]
    return kind(
        shape=(backbone.channels, height, width),
        initial_noise_scale=chosen.initial_noise_scale,
        skip_steps=chosen.skip_steps,
        **shared,
    )


def sampling_parts(
    run: RunFolder[configs.RunConfig], learnt: Learnt, chosen: configs.Sampling | configs.Edit, backbone: Backbone,
    guides: tuple[Guide, ...],
) -> dict[str, Any]:  # fmt: skip
    """Return the arguments of every `medlt.synthesis.conditional.Conditional`."""
    latents, targets = learnt.latents, run.config.targets
    return {
        "train": train_table(run, learnt.cohort, learnt.verifiers),
        "backbone": backbone,
        "standardiser": latents.standardiser,
        "decode": decoder(run.runtime, latents.codec),
        "scheduler": factory(chosen.scheduler, chosen.num_inference_steps, backbone.noise),
        "num_candidates": targets.num_candidates * (1 + targets.max_retries),
        "guidance_scale": chosen.guidance_scale,
        "guidance_interval": chosen.guidance_interval,
        "guidance": guides,
    }


Named = tuple[Guide, dict[str, str]]
"""A guide, and model name -> digest of the models that it uses."""


def build_guides(
    run: RunFolder[configs.RunConfig], learnt: Learnt, chosen: Sequence[configs.GuideConfig], backbone: Backbone
) -> tuple[tuple[Guide, ...], dict[str, str]]:
    """Return the guides of a config in their order, and model name -> digest of the models that they use.

    Guides of weight 0 are left out, so that no model is trained for them.
    """
    made = [_guide(run, learnt, one, backbone) for one in chosen if one.weight]
    return tuple(guide for guide, _ in made), {name: digest for _, named in made for name, digest in named.items()}


def _guide(run: RunFolder[configs.RunConfig], learnt: Learnt, chosen: configs.GuideConfig, backbone: Backbone) -> Named:
    if isinstance(chosen, configs.LongtailGuideConfig):
        return _longtail_guide(run, learnt, chosen, backbone)
    options = chosen.model_dump(include={"every", "window", "weighting", "cap", "weight_unit"})
    options |= {"weight": _weight(run, chosen)}
    if isinstance(chosen, configs.JepaGuideConfig):
        classifier = train_latent_classifier(run, learnt.cohort, learnt.latents)
        guide = JepaGuide(**options, features=features(classifier, learnt.latents, backbone))
        return guide, {"latent_classifier": classifier.digest}
    distance: Distance = l2
    named: dict[str, str] = {}
    if chosen.distance == "features":
        classifier = train_latent_classifier(run, learnt.cohort, learnt.latents)
        distance = between(features(classifier, learnt.latents, backbone))
        named = {"latent_classifier": classifier.digest}
    levels = None
    if chosen.reference:
        levels, named["levels"] = _levels(run, learnt, chosen, backbone, distance, named.get("latent_classifier", ""))
    return MinorityGuide(**options, probe=chosen.probe, distance=distance, reference=levels, rare=chosen.rare), named


def _longtail_guide(
    run: RunFolder[configs.RunConfig], learnt: Learnt, chosen: configs.LongtailGuideConfig, backbone: Backbone
) -> Named:
    """Return Longtail Guidance. Its classifier gets images that the run's codec decodes, in `gradient_precision`."""
    codec = gradient_codec(run.runtime, learnt.latents.codec, chosen.gradient_precision)
    if not isinstance(codec, DifferentiableCodec):
        raise InputError("Longtail Guidance needs a codec with gradients; use codec.kind: folder, train or identity")
    standardised = learnt.latents.standardiser if backbone.space == "standardised" else None
    decode = differentiable_decoder(codec, standardised, chosen.gradient_checkpointing)
    head = train_guidance_classifier(run, learnt.cohort, learnt.verifiers)
    options = chosen.model_dump(exclude={"kind", "gradient_checkpointing", "gradient_precision", "weight"})
    guide = LongtailGuide(decode=decode, guidance_classifier=head, weight=_weight(run, chosen), **options)
    return guide, {"guidance_classifier": head.digest}


def _weight(run: RunFolder[configs.RunConfig], chosen: configs.GuideConfig) -> float:
    """Return the weight of a guide; auto starts at the weakest strength, and `medlt.recipes._calibrate` settles it."""
    return run.config.calibration.weights[0] if isinstance(chosen.weight, str) else chosen.weight


def features(classifier: LatentClassifier, latents: Latents, backbone: Backbone) -> Callable[[Tensor], Tensor]:
    """Return a function from the backbone's latents to the classifier's features."""
    if backbone.space == "standardised":
        return classifier.features
    return lambda z: classifier.features(latents.standardiser.to(z))


def _levels(
    run: RunFolder[configs.RunConfig], learnt: Learnt, chosen: configs.MinorityGuideConfig, backbone: Backbone,
    distance: Distance, named: str,
) -> tuple[ReferenceLevels, str]:  # fmt: skip
    """Return how rare real train images of each finding are, by at most `MOST` images a finding, and a digest."""
    data = labelled_latents(learnt.cohort, learnt.latents, learnt.cohort.train, backbone.space)
    seed = run.config.seed
    key = {"format": 1, "backbone": backbone.digest, "data": data.digest(), "probe": chosen.probe, "distance": named,
           "seed": seed, "most": MOST}  # fmt: skip

    def build(folder: Any) -> None:
        latents, known = data.rows(few(data.labels, data.uids, seed))
        assert known.labels is not None
        condition, seeds = backbone.condition(known.labels, known.about), [seed_of("level", uid) for uid in known.uids]
        levels = reference_levels(
            backbone, latents, condition, known.labels, seeds, probe=chosen.probe, distance=distance
        )
        write_tensors(folder / "levels.safetensors", vars(levels))

    with run.stage("levels"):
        artifact = run.store.make("levels", key, build)
    run.record(digests={"levels": artifact.digest})
    return ReferenceLevels(**read_tensors(artifact.path("levels.safetensors"))), artifact.digest


def few(labels: np.ndarray, uids: Sequence[str], seed: int) -> np.ndarray:
    """Return sorted row numbers of at most `MOST` positives of each finding [N,K], drawn by the seed and the uids."""
    order = np.argsort([seed_of(seed, "level", uid) for uid in uids], kind="stable")
    chosen = [order[np.asarray(column)[order] == 1][:MOST] for column in np.asarray(labels).T]
    return np.unique(np.concatenate(chosen))


def extra_losses(run: RunFolder[configs.RunConfig], learnt: Learnt) -> Losses:
    """Return DiffuLT's extra losses (arXiv 2403.05170), those that the config has: CBDM first, then L_AID.

    Return `no_losses` for any other method, or if both are off; then all methods share one denoiser.
    """
    chosen = run.config.method
    if not isinstance(chosen, configs.Diffult):
        return no_losses
    cbdm = chosen.cbdm if chosen.cbdm is not None and chosen.cbdm.weight else None
    in_band = chosen.in_band_loss if chosen.in_band_loss is not None and chosen.in_band_loss.weight else None
    if cbdm is None and in_band is None:
        return no_losses
    classifier = train_latent_classifier(run, learnt.cohort, learnt.latents) if in_band is not None else None

    def losses(backbone: Backbone) -> tuple[ExtraLoss, ...]:
        made: list[ExtraLoss] = []
        if cbdm is not None:
            pool = learnt.cohort.train.labels()
            made.append(ClassBalancing(backbone.condition, pool, cbdm.weight, cbdm.power, backbone.noise))
        if in_band is not None and classifier is not None:
            made.append(_in_band_loss(learnt, in_band, classifier, backbone))
        return tuple(made)

    return losses


def _in_band_loss(
    learnt: Learnt, chosen: configs.InBandLoss, classifier: LatentClassifier, backbone: Backbone
) -> AidLoss:
    """Return L_AID, with bands around real train latents in the classifier's features; their median is the unit."""
    data = labelled_latents(learnt.cohort, learnt.latents, learnt.cohort.train, backbone.space)
    phi = features(classifier, learnt.latents, backbone)
    parts = (data.latents(data.uids[i : i + 256]).to(backbone.device) for i in range(0, len(data.uids), 256))
    embedded = np.concatenate([phi(part).cpu().numpy() for part in parts])
    labels = np.asarray(data.labels)
    widths = limits(embedded, labels)
    return AidLoss(
        phi=phi,
        phi_digest=digest("latent classifier", classifier.digest),
        limits=widths.tolist(),
        counts=(labels == 1).sum(0).tolist(),
        alpha=chosen.weight,
        share=chosen.share,
        low=round(chosen.window[0] * backbone.noise.train_steps),
        high=chosen.window[1],
        estimate=chosen.estimate,
        unit=float(np.nanmedian(widths)),
        noise=backbone.noise,
    )
