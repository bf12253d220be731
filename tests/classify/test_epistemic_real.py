"""Does an epistemic head, trained on one collection, doubt images from elsewhere? On real radiographs, three seeds.

Images not seen in training (val and test of the collection) against those of two other sources, squared and shrunk as
all images are: AUROC of each statistic, its mean over the findings, as a classifier of the source. Results:

| statistic | other sources | noise | positives of rare findings |
|---|---|---|---|
| variance | higher, every seed | higher | below bald: it grows with the size of the logit: confident negatives lead |
| bald | higher for one source, not for the other | higher | higher |
| entropy, margin | not higher | by chance | higher |
| energy | by chance | lower | lower |
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from medlt.classify.epistemic import Epistemic, fit_epistemic
from medlt.classify.sets import TrainingSet
from medlt.classify.train import fit_classifier
from medlt.classify.uncertainty import STATISTICS
from medlt.data.images import read_image
from medlt.data.layouts import NIH_FINDINGS
from medlt.data.squares import square
from medlt.metrics.ranking import auroc
from medlt.store import Store
from medlt.training.runtime import Runtime

pytestmark = [pytest.mark.real_data, pytest.mark.slow]
SIZE, SEEDS = 64, (0, 1, 2)


def read(folder: Path) -> tuple[pd.DataFrame, Tensor]:
    """The table of a source and its images, uint8 [N,1,S,S]."""
    table = pd.read_csv(folder / "labels.csv")
    pixels = np.stack([square(read_image(folder / path), SIZE) for path in table["path"]])
    return table, torch.from_numpy((pixels * 255).round().astype(np.uint8))[:, None]


def rows(table: pd.DataFrame, images: Tensor, split: str) -> TrainingSet:
    at = np.flatnonzero(table["split"] == split)
    labels = table.iloc[at][[name.replace(" ", "_") for name in NIH_FINDINGS]].to_numpy("float32")
    return TrainingSet(images[at], labels, np.ones(len(at), np.float32), tuple(table["image_id"].iloc[at]))


@torch.no_grad()
def scores(head: Epistemic, images: Tensor) -> dict[str, Tensor]:
    """Every statistic [N,K] of uint8 images, in one pass."""
    scores = [head(part.float() / 255) for part in torch.split(images, 64)]
    return {name: torch.cat([value(*logits) for logits in scores]) for name, value in STATISTICS.items()}


def separated(here: Tensor, there: Tensor) -> float:
    """AUROC of a signal for telling images from elsewhere."""
    truth = np.repeat(np.array([0, 1], np.float32), [len(here), len(there)])
    return auroc(truth, torch.cat([here, there]).numpy())


@pytest.fixture(scope="module")
def known(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Epistemic]:
    """A head of a small classifier, by seed."""
    folder, (table, images) = tmp_path_factory.mktemp("heads"), read(real_data / "nih14")
    train, val = rows(table, images, "train"), rows(table, images, "val")

    def make(seed: int) -> Epistemic:
        runtime, store = Runtime("cpu", "fp32", None, seed), Store(folder)
        classifier = fit_classifier(train, val, runtime=runtime, store=store, steps=300)
        return fit_epistemic(classifier, train, runtime=runtime, store=store)

    return make


def test_the_variance_of_members_is_higher_on_other_sources(real_data: Path, known: Callable[[int], Epistemic]) -> None:
    table, images = read(real_data / "nih14")
    here = images[np.flatnonzero(table["split"] != "train")]
    heads = [known(seed) for seed in SEEDS]
    at_home = [scores(head, here) for head in heads]
    for source, probability_of_bald in (("covidmix", True), ("pedpneu", False)):
        elsewhere = [scores(head, read(real_data / source)[1]) for head in heads]
        result: dict[str, list[float]] = {}
        for name in STATISTICS:
            pairs = [(one[name].mean(1), other[name].mean(1)) for one, other in zip(at_home, elsewhere, strict=True)]
            result[name] = [separated(*pair) for pair in pairs]
            print(f"{source} {name}", " ".join(f"{value:.3f}" for value in result[name]))  # noqa: T201
            if name == "variance":
                assert all(other.mean() > one.mean() for one, other in pairs)
        assert min(result["variance"]) > 0.65
        assert min(result["bald"]) > (0.4 if probability_of_bald else 0.65)
        assert all(v > e for v, e in zip(result["variance"], result["entropy"], strict=True))


def test_positives_of_rare_findings_are_ranked_by_disagreement_not_by_variance(
    real_data: Path, known: Callable[[int], Epistemic]
) -> None:
    table, images = read(real_data / "nih14")
    held = rows(table, images, "test")
    rare = [k for k, n in enumerate(np.nansum(rows(table, images, "train").labels, axis=0)) if n < 50]
    noise = torch.randn(held.images.shape, generator=torch.Generator().manual_seed(0))
    noisy = (held.images.float() / 255 + 0.15 * noise).clamp(0, 1)
    for seed in SEEDS:
        head, order = known(seed), {}
        for name in ("bald", "variance"):
            value = head.score(held.images, name)
            assert separated(value.mean(1), head.score(noisy, name).mean(1)) > 0.6, (name, seed)
            own = [value[:, k][torch.from_numpy(held.labels[:, k] == y)] for y in (0, 1) for k in rare]
            order[name] = separated(torch.cat(own[: len(rare)]), torch.cat(own[len(rare) :]))
            print(f"positives of rare findings, {name}, seed {seed}: {order[name]:.3f}")  # noqa: T201
        assert order["bald"] > max(0.5, order["variance"]), seed
