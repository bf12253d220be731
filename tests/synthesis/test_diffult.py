"""DiffuLT's images: the plan fills every finding, the sampler is the unguided one, its parts fit together."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from medlt.checks.bands import in_band, limits
from medlt.classify.latents import fit_latents
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.cbdm import ClassBalancing
from medlt.diffusion.finetune import LabelledLatents, train_backbone
from medlt.diffusion.in_band_loss import AidLoss
from medlt.diffusion.labels import LabelUNet, LabelVector
from medlt.diffusion.schedulers import factory
from medlt.diffusion.train import new_network
from medlt.rng import noise_like, seed_of
from medlt.store import Store
from medlt.synthesis.diffult import DiffuLT
from medlt.synthesis.fill import fill_targets
from medlt.synthesis.from_noise import COLUMNS
from medlt.training.runtime import Runtime
from medlt.training.settings import Training


def latents_of(uids: Sequence[str]) -> Tensor:
    """Standardised latents [N,2,8,8], a function of the uid."""
    return noise_like([seed_of(uid) for uid in uids], (2, 8, 8))


def decode(z: Tensor) -> Tensor:
    """Images [B,1,8,8] in [0,1]."""
    return z.mean(1, keepdim=True).sigmoid()


NEED = {"Hernia": 4, "Pleural Other": 2}


@pytest.fixture
def build(methods: dict[str, Callable[..., Any]]) -> Callable[..., DiffuLT]:
    """DiffuLT from the parts of the unguided method."""

    def make(**changed: Any) -> DiffuLT:
        parts = vars(methods["noise"]())
        wanted = (
            "train",
            "backbone",
            "shape",
            "standardiser",
            "decode",
            "scheduler",
            "num_candidates",
            "batch_size",
        )
        return DiffuLT(**({name: parts[name] for name in wanted} | changed))

    return make


def images(method: DiffuLT, rows: pd.DataFrame) -> torch.Tensor:
    return torch.cat([batch.images for batch in method.run(rows)])


def test_the_plan_is_the_fill_rule_with_candidates(build: Callable[..., DiffuLT]) -> None:
    method = build(num_candidates=3)
    rows = method.plan(NEED, 5)
    chosen = fill_targets(method.train.table, NEED, 5)
    assert tuple(rows.columns) == COLUMNS
    assert list(zip(rows["finding"], rows["label_source"], strict=True)) == [one for one in chosen for _ in range(3)]
    assert rows["candidate"].tolist() == [0, 1, 2] * len(chosen)
    for finding, part in rows.groupby("finding"):
        assert part["slot"].tolist() == [n for n in range(len(part) // 3) for _ in range(3)], finding
    labels = pd.concat([batch.labels for batch in method.run(rows[rows["candidate"] == 0])])
    assert all((labels[name] == 1).sum() >= count for name, count in NEED.items())


def test_a_row_is_the_unguided_methods_row(build: Callable[..., DiffuLT], methods: dict[str, Any]) -> None:
    """Equal seeds and equal labels: the same image, bit for bit; only which labels and the name differ."""
    rows = build().plan(NEED, 3)
    assert torch.equal(images(build(), rows), images(methods["noise"](), rows))
    plain = methods["noise"]().plan(NEED, 3)
    key = ["finding", "slot", "candidate"]
    both = rows.merge(plain, on=key, suffixes=("", "_plain"))
    assert len(both) == len(rows)
    assert (both["seed"] == both["seed_plain"]).all()
    assert rows.index.str.startswith("diffult_").all()


def test_rounds_of_candidates_keep_what_was_made(build: Callable[..., DiffuLT]) -> None:
    """More candidates add rows to each slot; those of earlier rounds stay as they were."""
    few, more = build(num_candidates=2).plan(NEED, 3), build(num_candidates=6).plan(NEED, 3)
    pd.testing.assert_frame_equal(more[more["candidate"] < 2], few)
    assert more.index.is_unique
    assert more["seed"].is_unique


def test_nothing_to_fill_is_an_empty_plan(build: Callable[..., DiffuLT]) -> None:
    rows = build().plan({"Hernia": 0}, 0)
    assert len(rows) == 0
    assert tuple(rows.columns) == COLUMNS


def test_the_parts_of_the_method_fit_together(build: Callable[..., DiffuLT], tmp_path: Path) -> None:
    """phi0 on latents, its band limits, a denoiser trained with both losses and stopped on the way, images, bands."""
    rows = build().train.table
    names = list(build().train.findings)
    data = LabelledLatents(latents_of, list(rows.index), rows[names].to_numpy(float), contents="latents by uid")
    runtime = Runtime("cpu", "fp32", None, 0)
    phi = fit_latents(data, data, runtime=runtime, store=Store(tmp_path / "store"), steps=2, batch_size=8)
    features = phi.features(data.rows(np.arange(len(rows)))[0]).numpy()
    edge, counts = limits(features, data.labels), np.nansum(data.labels, 0)
    vector = LabelVector(len(names))
    extra = (
        ClassBalancing(vector, data.labels),
        AidLoss(phi.features, phi.digest, edge, counts, share=1.0, unit=float(np.nanmedian(edge))),
    )

    def trained(folder: str, *stops: int) -> Backbone:
        options = {"steps": 2, "batch_size": 4, "warmup_steps": 0, "checkpoint_every": 1}
        made = [
            train_backbone(
                new_network(LabelUNet, data, 1, {"width": 8}).backbone(), data, folder=tmp_path / folder,
                extra_losses=extra, runtime=runtime, training=Training(**options, stop_at=stop),
            )
            for stop in stops
        ]  # fmt: skip
        return made[-1]

    backbone = trained("whole", 2)
    assert backbone.digest == trained("stopped", 1, 2).digest
    method = build(backbone=backbone, scheduler=factory("ddim", 2), decode=decode)
    plan = method.plan({"Pleural Other": 2}, 0)
    features = [lambda images: images.flatten(1)] * 3
    real = {uid: decode(latents_of([uid])) for uid in rows.index}
    check = in_band(
        features, lambda uids: torch.cat([real[uid] for uid in uids]), rows["fold"], rows[names], ["Pleural Other"]
    )
    results = [one for batch in method.run(plan) for one in check(batch)]
    assert [one.uid for one in results] == list(plan.index)
    assert all(np.isfinite(one.value) for one in results)
