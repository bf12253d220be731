"""The examples of the docstrings run: configs, labels and files are real; trainings are those of the tiny run."""

import doctest
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import medlt
from medlt.api import calls
from medlt.data.images import read_image
from medlt.recipes import audit as audit_recipe

CONCLUSION = {"conclusion": "No test shows a leak.", "results": [{"name": "x", "passed": True, "sentence": "y"}]}


def examples(name: str) -> list[str]:
    """The statements of the examples of a public name, its public members included."""
    value = getattr(medlt, name)
    members = vars(value).values() if isinstance(value, type) else ()
    texts = [getattr(one, "__doc__", None) or "" for one in (value, *members)]
    return [example.source for text in texts for example in doctest.DocTestParser().get_examples(text)]


NAMES = [name for name in sorted(medlt.__all__) if examples(name)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_run: medlt.Run) -> Path:
    """A folder with labels.csv, png/, dicom/ and a run; calls return the tiny run once their config is made."""
    manifest = tiny_run.manifest.where(~tiny_run.manifest.rows["synthetic"].astype(bool))
    (tmp_path / "png").mkdir()
    (tmp_path / "dicom").mkdir()
    for file in [manifest.file(str(uid)) for uid in manifest.rows.index[:2]]:
        (tmp_path / "dicom" / file.name).write_bytes(file.read_bytes())
    for uid in manifest.rows.index:
        pixels = (read_image(manifest.file(str(uid))) * 255).astype("uint8")
        Image.fromarray(pixels).save(tmp_path / "png" / f"{uid}.png")
    rows = manifest.rows[["patient_id", "split", "view", *manifest.findings]]
    rows = rows.rename(columns={"Mass": "Hernia"}).assign(path=[f"{uid}.png" for uid in rows.index])
    rows.to_csv(tmp_path / "labels.csv")
    manifest.write(tmp_path / "manifest.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calls, "_finished", lambda recipe, config, progress: tiny_run)
    monkeypatch.setattr(audit_recipe, "main", lambda folder, options, progress: CONCLUSION)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_the_example_runs(name: str, place: Path, tiny_run: medlt.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medlt.Run, "images", lambda self, finding=None: medlt.SyntheticImages(
        self.manifest.where(self.manifest.rows["synthetic"].astype(bool))))  # fmt: skip
    if name == "load":
        (place / "runs").mkdir()
        (place / "runs" / "fusion-1f0c2a9b").symlink_to(tiny_run.folder)
    collection = medlt.Collection.from_manifest(place / "manifest.parquet")
    names: dict[str, Any] = {"medlt": medlt, "run": tiny_run, "collection": collection}
    for statement in examples(name):
        exec(compile(statement, name, "single"), names)


def test_the_calls_have_examples() -> None:
    wanted = {"augment", "evaluate", "finetune", "audit", "load", "Collection", "Run", "LongTailAugmenter"}
    assert wanted | {"RandSyntheticSwapd"} <= set(NAMES)
