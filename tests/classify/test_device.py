"""Classifiers, heads, the sparse code and the embedding train where the runtime says, and nowhere else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medlt.classify.epistemic import fit_epistemic
from medlt.classify.latents import fit_latents
from medlt.classify.networks import network
from medlt.classify.private import private_classifier
from medlt.classify.sets import TrainingSet
from medlt.classify.train import Classifier, fit_classifier
from medlt.diffusion.finetune import LabelledLatents
from medlt.privacy.audit.embedding import fit_embedding
from medlt.privacy.audit.reidentify import verify
from medlt.rng import noise_like
from medlt.sparse.iterated import iterate
from medlt.store import Store
from medlt.training import loop
from medlt.training.runtime import Runtime
from medlt.types import InputError

N = 16
UIDS = tuple(f"u{i}" for i in range(N))
IMAGES = (noise_like(range(N), (1, 16, 16)) * 40 + 128).clamp(0, 255).to(torch.uint8)
LABELS = np.stack([np.arange(N) % 2, np.arange(N) % 3 == 0], 1).astype(np.float32)
ROWS = TrainingSet(IMAGES, LABELS, np.ones(N, np.float32), UIDS)
LATENTS = noise_like(range(N), (2, 4, 4))
DATA = LabelledLatents(lambda uids: LATENTS[[int(uid[1:]) for uid in uids]], UIDS, LABELS, "normal noise")
PATIENTS = [f"p{i // 2}" for i in range(N)]
SHORT: dict[str, Any] = {"steps": 2, "batch_size": 4}
CODE: dict[str, Any] = {"groups": 2, "vocabulary": 4, "width": 4, "batch_size": 4, "imitation_epochs": 1,
                        "interaction_epochs": 1}  # fmt: skip


class Recorded:
    """A PrivateFit that trains nothing, and records where it was asked to."""

    digest = "recorded"

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def __call__(self, *_: object, runtime: Runtime, folder: Path, **__: object) -> None:
        self.seen.append(runtime.device)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "mechanism.json").write_text("{}")

    def account(self, mechanism: Path) -> None:
        assert mechanism.read_text() == "{}"


def learn(where: dict[str, Any], **more: Any) -> object:
    code = CODE | {"generations": 2, "contents": "train", "val_contents": "val"}
    return iterate(LATENTS, LABELS, LATENTS, LABELS, **code, **where, **more)


TRAININGS: dict[str, tuple[int, Callable[[dict[str, Any]], object]]] = {
    "classifier": (1, lambda at: fit_classifier(ROWS, ROWS, **SHORT, **at)),
    "two stages": (2, lambda at: fit_classifier(ROWS, ROWS, training_strategy="crt", **SHORT, **at)),
    "latent classifier": (1, lambda at: fit_latents(DATA, DATA, **SHORT, **at)),
    "epistemic head": (1, lambda at: fit_epistemic(Classifier(network("small", 2), 16, {}), ROWS, **SHORT, **at)),
    "sparse code": (4, learn),
    "embedding": (1, lambda at: fit_embedding(IMAGES, PATIENTS, size=16, **SHORT, **at)),
    "verification": (2, lambda at: verify(IMAGES.repeat(2, 1, 1, 1), PATIENTS + [f"q{i // 2}" for i in range(N)],
                                          size=16, **SHORT, **at)),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAININGS)
def test_every_training_runs_where_the_runtime_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, inner = list[tuple[str, int]](), loop.fit

    def record(*parts: Any, runtime: Runtime, **more: Any) -> Any:
        seen.append((runtime.device, runtime.seed))
        return inner(*parts, runtime=runtime, **more)

    monkeypatch.setattr(loop, "fit", record)
    monkeypatch.setattr(Runtime, "torch_device", lambda runtime, purpose: torch.device("cpu"))
    count, train = TRAININGS[name]
    train({"runtime": Runtime("cuda:7", "fp32", None, 5), "store": Store(tmp_path)})
    assert seen == [("cuda:7", 5)] * count


def test_private_trainings_are_given_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(Runtime, "torch_device", lambda runtime, purpose: torch.device("cpu"))
    where = {"runtime": Runtime("cuda:7", "fp32", None, 5), "store": Store(tmp_path), "private": Recorded(seen)}
    private_classifier(ROWS, PATIENTS, prepare=lambda net: None, **SHORT, **where)
    learn(where, patients=PATIENTS, units=len(set(PATIENTS)))
    assert seen == ["cuda:7"] * 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks the message without a GPU")
@pytest.mark.parametrize("name", TRAININGS)
def test_a_device_that_is_not_there_is_refused_before_anything_is_kept(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="torch detects no GPU"):
        TRAININGS[name][1]({"runtime": Runtime("cuda", "fp32", None, 0), "store": Store(tmp_path)})
    assert not list(tmp_path.rglob("artifact.json"))
