"""Features of frozen pretrained weights: each image passes once, and every arm and seed trains its head on the result.

The features of a set of images are an artifact, under the digests of weights and pixels and the precision. So the arms
of an experiment, its seeds, its worker processes and a later run share them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medlt import files
from medlt.classify.classifier import Classifier
from medlt.classify.sets import TrainingSet, digest_rows
from medlt.rows import Rows, chunks
from medlt.store import Store
from medlt.types import InputError

FORMAT = 1  # part of the key: increase it if the same weights would give other features
FEATURES, CHUNK = "features.safetensors", 64


@dataclass(frozen=True)
class FeatureSet(TrainingSet):
    """Rows whose `images` are features, float32 [N,D]."""

    def __post_init__(self) -> None:
        if self.images.ndim != 2 or len(self.images) != len(self.uids):
            raise InputError(f"features must be [N,D] for {len(self.uids)} rows, got {tuple(self.images.shape)}")


def feature_rows(
    classifier: Classifier, rows: TrainingSet, *, store: Store, progress: Callable[[int, int], None]
) -> FeatureSet:
    """Return the rows with the features of a frozen classifier in place of their images."""
    features = stored_features(classifier, rows.images, store, progress)
    return FeatureSet(features, rows.labels, rows.weights, rows.uids)


def stored_features(
    classifier: Classifier,
    images: Rows,
    store: Store,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Return the features float32 [N,D] of images uint8 [N,1,S,S], computed now or loaded from the store."""
    settings = classifier.record["settings"]
    key = {"format": FORMAT, "weights": settings["weights"], "network": settings["network"], "size": classifier.size}
    key |= {"precision": classifier.precision, "pixels": digest_rows(images)}

    def build(folder: Path) -> None:
        parts = []
        for part in chunks(images, CHUNK):
            parts.append(classifier.features(part, CHUNK))
            progress(sum(map(len, parts)), len(images))
        files.write_tensors(folder / FEATURES, {"features": torch.cat(parts)})

    return files.read_tensors(store.make("features", key, build).path(FEATURES))["features"]


def predict_rows(classifier: Classifier, images: Rows, store: Store) -> Tensor:
    """Return `classifier.predict` of images uint8 [N,1,S,S]; of a frozen classifier from stored features."""
    if not classifier.frozen:
        return classifier.predict(images)
    return classifier.predict_from(stored_features(classifier, images, store))
