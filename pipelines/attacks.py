"""The attacks of an audit that train no further denoiser: copies, re-identification, membership by loss."""

from __future__ import annotations

import torch
from torch import Tensor

from medlt import config as configs
from medlt.chance import seed_of
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.families import FAMILIES, begin
from medlt.diffusion.finetune import LabelledLatents
from medlt.diffusion.schedulers import factory
from medlt.diffusion.train import new_network
from medlt.privacy.audit import copies, embedding, membership, plants, reidentify
from pipelines import encoding
from pipelines.subject import Subject

STRENGTHS = (0.1, 0.3, 0.5)
"""Of planted copies that went through the run's own denoiser: shares of its steps."""
SIZE = 64
OWN = {"kind", "start", *configs.Training.model_fields}
"""Fields of a denoiser's config that are not its network's."""


def _embedding(subject: Subject) -> embedding.Embedding:
    """Trained on members and others alike, so that it cannot tell them apart."""
    whole = subject.real.manifest
    return embedding.fit_embedding(
        subject.pixels(whole, SIZE), list(whole.rows["patient_id"].astype(str)), seed=_seed(subject, "embedding"),
        folder=subject.run.path("stages", "audit"), steps=subject.asked.embedding_steps, progress=subject.progress,
    )  # fmt: skip


def _seed(subject: Subject, *key: object) -> int:
    return seed_of(subject.asked.seed, "audit", *key)


def _plants(subject: Subject) -> dict[str, plants.Plant]:
    """What a copy may have been through, the run's own codec and denoiser among it."""
    latents, backbone, chosen = subject.latents, subject.backbone, subject.run.config.method
    decoder, own = encoding.decoder(subject.run, latents.codec), backbone.space == "standardised"

    def encode(images: Tensor) -> Tensor:
        z = latents.codec.latents(latents.codec.moments(images))
        return latents.standardiser.to(z) if own else z

    def decode(z: Tensor) -> Tensor:
        return decoder(latents.standardiser.back(z) if own else z)

    found = {**plants.COMMON, "codec round trip": plants.round_trip(encode, decode)}
    schedule, denoiser = factory(chosen.scheduler, chosen.steps, backbone.noise), backbone.denoiser()
    for strength in STRENGTHS:
        keep = max(1, round(strength * chosen.steps))
        found[f"denoiser, strength {strength}"] = plants.img2img(encode, decode, denoiser, schedule, keep)
    return found


def screened(subject: Subject) -> copies.Screening:
    """Is an image nearer to a train image than images of other patients are?"""
    planted, held = _plants(subject), subject.held
    return copies.screen(
        _embedding(subject), subject.pixels(subject.made), subject.pixels(subject.real.train), subject.pixels(held),
        planted, uids=list(subject.made.rows.index), held_patients=list(held.rows["patient_id"].astype(str)),
        seed=_seed(subject, "copies"), rate=subject.asked.false_positive,
        required=[name for name in planted if not name.startswith("denoiser")],
    )  # fmt: skip


def reidentified(subject: Subject) -> reidentify.Reidentification:
    """Do images lead back to patients of the training more often than to others?"""
    whole, train, held = subject.real.manifest, subject.real.train, subject.held
    patients = list(whole.rows["patient_id"].astype(str))
    known = reidentify.verify(subject.pixels(whole, SIZE), patients, seed=_seed(subject, "verification"),
                              steps=subject.asked.embedding_steps, folder=subject.run.path("stages", "audit"),
                              progress=subject.progress)  # fmt: skip
    return reidentify.reidentify(
        _embedding(subject), subject.pixels(subject.made), subject.pixels(train), subject.pixels(held), known,
        uids=list(subject.made.rows.index), train_patients=list(train.rows["patient_id"].astype(str)),
        held_patients=list(held.rows["patient_id"].astype(str)), seed=_seed(subject, "re-identification"),
    )  # fmt: skip


def scores(subject: Subject, backbone: Backbone, data: LabelledLatents) -> Tensor:
    """How well a denoiser knows each row, float64 [N]; higher: rather one it was trained on."""
    labels = torch.from_numpy(data.labels.astype("float32"))
    told = backbone.condition(labels, data.about)
    found = membership.loss_scores(backbone, data.latents(data.uids), told, seed=_seed(subject, "membership"))
    return torch.from_numpy(membership.calibrated(found))


def members(subject: Subject) -> membership.Membership:
    """Can one who holds an image tell by the denoiser's loss whether it was trained on it?"""
    data, member = subject.rows
    found = scores(subject, subject.backbone, data).numpy()
    fresh = untrained(subject, data)
    control = None if fresh is None else scores(subject, fresh, data).numpy()
    seed = _seed(subject, "membership rates")
    return membership.membership(found, member, data.patients, seed=seed, control=control)


def untrained(subject: Subject, data: LabelledLatents) -> Backbone | None:
    """A denoiser of the run's shape that saw nobody: what it can tell members by is no leak. None of a given model."""
    chosen = subject.run.config.denoiser
    if isinstance(chosen, configs.StableConfig):
        return None
    seed = _seed(subject, "untrained")
    net = new_network(FAMILIES[chosen.kind], data, seed, chosen.model_dump(exclude=OWN)).eval()
    if chosen.start is not None:
        begin(net, chosen.start)
    return net.backbone()
