"""A trained classifier as files: its weights, and a record of settings, history and digests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medlt import files
from medlt.classify.classifier import Classifier
from medlt.classify.heads import classifier_network
from medlt.classify.pretrained import Pretrained
from medlt.types import InputError

RECORD, WEIGHTS = "classifier.json", "classifier.safetensors"


def write_classifier(classifier: Classifier, folder: Path, record: dict[str, Any]) -> None:
    """Write weights and record; of a classifier on frozen weights the head alone."""
    net = classifier.net.head if classifier.frozen else classifier.net
    files.write_tensors(folder / WEIGHTS, net.state_dict())
    files.write_json(folder / RECORD, record)


def load_classifier(folder: Path, device: str, pretrained: Pretrained | None = None) -> Classifier:
    """Load a classifier from its folder in the store; one on frozen weights needs these, since it holds its head only.

    Raises InputError if there is none, or if it was trained on other frozen weights.
    """
    try:
        record, weights = json.loads((folder / RECORD).read_text()), files.read_tensors(folder / WEIGHTS)
        settings = record["settings"]
        spec, findings = settings["weights"], len(record["positive"])
        net = classifier_network(settings["network"], settings["loss"], findings, spec=spec)
        (net.head if settings["frozen"] else net).load_state_dict(weights)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, FileNotFoundError):
        raise InputError(f"{folder}: has no readable classifier; move it away and run again") from None
    if settings["frozen"]:
        if pretrained is None or pretrained.spec != spec:
            raise InputError(f"{folder}: has a head on frozen weights; give the weights it was trained on")
        pretrained.load(net)
    return Classifier(net.to(device).eval(), record["size"], record)
