"""What once ended with exit 0 and wrong results: other pixels, replaced inputs, races, damage, names with blanks."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from medlt.config import RunConfig, dump, parse
from medlt.data.images import read_image
from medlt.data.manifest import Manifest
from medlt.recipes import _setup
from medlt.recipes.augment import main as augment
from medlt.recipes.run import main as run
from medlt.training.runtime import Runtime
from medlt.types import InputError

Tiny = Callable[[Path], RunConfig]


def pictures(folder: Path) -> dict[str, bytes]:
    """Published images by name."""
    return {path.name: path.read_bytes() for path in sorted((folder / "images").glob("*.png"))}


@pytest.fixture(scope="module")
def hospital(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom cohort of the finished run as PNG files without lesion masks, with manifest.parquet."""
    place = tmp_path_factory.mktemp("hospital")
    filed = Manifest.read(finished / "stages" / "data" / "manifest.parquet").without_regions()
    for uid in filed.rows.index:
        pixels = np.round(read_image(filed.file(uid)) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{uid}.png")
    rows = filed.rows.drop(columns="content").assign(path=[f"{uid}.png" for uid in filed.rows.index])
    Manifest(rows, filed.findings, place).write(place / "manifest.parquet")
    return place


def other_pixels(hospital: Path, place: Path) -> Path:
    """The same names, uids and labels with other pixels."""
    shutil.copytree(hospital, place)
    for file in sorted(place.glob("*.png")):
        pixels = np.asarray(Image.open(file))
        Image.fromarray(np.roll(255 - pixels, 5, 1)).save(file)
    return place


def config_of(tiny: Tiny, out: Path, hospital: Path, **changes: Any) -> RunConfig:
    """The tiny config on a folder of PNG files."""
    tree = tiny(out).model_dump(mode="json")
    return parse({**tree, "data": {"kind": "manifest", "path": str(hospital / "manifest.parquet")}, **changes})


@pytest.fixture(scope="module")
def alone(tiny: Tiny, hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the folder of PNG files, with a store of its own."""
    return augment(config_of(tiny, tmp_path_factory.mktemp("alone") / "run", hospital))


def test_runs_on_other_pixels_share_a_folder_and_nothing_learnt(
    tiny: Tiny, hospital: Path, alone: Path, tmp_path: Path
) -> None:
    """Equal uids, labels, names and counts: the codec, the code and the images are other ones all the same."""
    other, shared = other_pixels(hospital, tmp_path / "other"), str(tmp_path / "shared")
    shutil.copytree(alone / "artifacts", shared)
    first = alone
    known = {record.parent for record in (tmp_path / "shared").glob("*/*/artifact.json")}
    second = augment(config_of(tiny, tmp_path / "b", other, artifacts_dir=shared))
    added = {record.parent for record in (tmp_path / "shared").glob("*/*/artifact.json")} - known
    kinds = {"codec", "latents", "sparse", "denoiser", "classifier"}
    assert kinds <= {folder.parent.name for folder in added}
    same = [name for name, image in pictures(first).items() if pictures(second).get(name) == image]
    assert pictures(first)
    assert same == []
    own = augment(config_of(tiny, tmp_path / "c", other))
    assert pictures(own) == pictures(second)


def test_inputs_replaced_between_a_run_and_its_resume_are_refused(
    tiny: Tiny, hospital: Path, alone: Path, tmp_path: Path
) -> None:
    own = tmp_path / "hospital"
    shutil.copytree(hospital, own)
    config = config_of(tiny, tmp_path / "run", own)

    class Killed(BaseException):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "denoiser":
            raise Killed

    with pytest.raises(Killed):
        augment(config, stop)
    for file in sorted(own.glob("*.png"))[:3]:
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    with pytest.raises(InputError, match="3 images changed since this run began"):
        augment(config)
    for file in sorted(own.glob("*.png"))[:3]:
        shutil.copy(hospital / file.name, file)
    augment(config)
    assert pictures(tmp_path / "run") == pictures(alone)


def test_two_runs_at_once_in_one_learnt_folder_make_each_artifact_once(
    tiny: Tiny, hospital: Path, alone: Path, tmp_path: Path
) -> None:
    """As a job array does: both wait for each other's parts, and both end as one that ran alone."""
    processes = []
    for name in ("a", "b"):
        config = config_of(tiny, tmp_path / name, hospital, artifacts_dir=str(tmp_path / "shared"))
        (tmp_path / f"{name}.yaml").write_text(dump(config))
        command = [sys.executable, "-m", "medlt", "augment", str(tmp_path / f"{name}.yaml")]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    for process in processes:
        said, _ = process.communicate()
        assert process.returncode == 0, said
    for name in ("a", "b"):
        assert pictures(tmp_path / name) == pictures(alone) != {}


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a flipped byte": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "cut short": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
}
PLACES = (
    "artifacts/codec/*/*.safetensors",
    "artifacts/images-32/*/*/*",
    "artifacts/latents/*/*",
    "artifacts/sparse/*/*.safetensors",
    "artifacts/denoiser/*/*",
    "artifacts/classifier/*/*",
)


@pytest.mark.parametrize(
    "kinds", [[*DAMAGE], *(pytest.param([name], marks=pytest.mark.slow) for name in DAMAGE)], ids=" and ".join
)
def test_damaged_artifacts_are_named_set_aside_and_made_again(
    kinds: list[str], finished: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Each kind of damage in turn; the store's own tests have every kind in one artifact."""
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    before = pictures(finished)
    spoilt, damages = [], cycle(DAMAGE[name] for name in kinds)
    for pattern in PLACES:
        files = [path for path in sorted(Path("run").glob(pattern)) if path.is_file() and ".work" not in path.parts[-2]]
        file = next(path for path in files if path.stat().st_size > 20)
        file.write_bytes(next(damages)(file.read_bytes()))
        spoilt.append(file)
    for file in sorted(path for path in Path("run/stages").glob("shard*/*/*/images/*.png"))[:1]:
        file.write_bytes(next(damages)(file.read_bytes()))
        spoilt.append(file)
    with caplog.at_level(logging.WARNING):
        run(tiny(Path("run")))
    assert pictures(Path("run")) == before
    named = [file for file in spoilt if file.as_posix() in caplog.text or str(file.parent) in caplog.text]
    assert named == spoilt
    assert len(list(Path("run/artifacts").rglob("*.damaged-*"))) >= len(PLACES)


def test_image_names_with_blanks_go_through_to_the_verdict(tiny: Tiny, hospital: Path, tmp_path: Path) -> None:
    own = tmp_path / "hospital"
    own.mkdir()
    rows = pd.read_parquet(hospital / "manifest.parquet")
    names = {uid: f"Viral Pneumonia, {number}" for number, uid in enumerate(rows.index)}
    for uid, name in names.items():
        shutil.copy(hospital / f"{uid}.png", own / f"{name}.png")
    whole = Manifest.read(hospital / "manifest.parquet")
    renamed = whole.rows.rename(index=names)
    Manifest(renamed.assign(path=[f"{name}.png" for name in renamed.index]), whole.findings, own).write(
        own / "manifest.parquet"
    )
    done = run(config_of(tiny, tmp_path / "run", own))
    assert json.loads((done / "verdict.json").read_text())["verdict"] in ("helps", "no evidence", "harms", "cannot see")
    plan = pd.read_parquet(done / "plan.parquet")
    assert {parent for parents in plan["parents"] for parent in parents} <= set(names.values())
    assert (plan["parents"].map(len) == 2).all()


def test_integers_of_the_plan_are_handed_out_bit_for_bit(finished: Path) -> None:
    plan, rows = pd.read_parquet(finished / "plan.parquet"), pd.read_parquet(finished / "manifest.parquet")
    made = rows[rows["synthetic"].astype(bool)]
    assert len(made)
    for name in ("seed", "slot", "candidate", "fold"):
        assert pd.api.types.is_integer_dtype(rows[name])
        assert made[name].astype("int64").tolist() == plan.loc[made.index, name].astype("int64").tolist()


def test_damaged_tables_of_a_run_are_written_again(
    finished: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    real = "stages/data/manifest.parquet"
    names = ("failures.csv", "plan.parquet", "checks.parquet", "sparse_code_metrics.parquet", real)
    for name in names:
        Path("run", name).write_bytes(b"\x00")
    run(tiny(Path("run")))
    for name in names:
        assert Path("run", name).read_bytes() == (finished / name).read_bytes()


class Recording(Runtime):
    """A runtime that notes who asked it for its device."""

    asked: list[str] = []  # noqa: RUF012 - of the class, as runtimes are replaced by copies

    def torch_device(self, purpose: str) -> torch.device:
        Recording.asked.append(purpose)
        return super().torch_device(purpose)


def test_every_training_gets_the_device_of_the_config(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codec, sparse code, denoiser, verifiers, what guides, the near-copy embedding and all arms."""
    made: list[str] = []

    def recorded(config: Any, progress: Any) -> Runtime:
        made.append(config.device)
        return Recording(config.device, "fp32", config.threads, config.seed, progress)

    monkeypatch.setattr(_setup, "runtime_of", recorded)
    Recording.asked.clear()
    tree = tiny(tmp_path / "run").model_dump(mode="json")
    tree["data"] |= {"patients": 60, "shares": [0.4, 0.5, 0.1]}
    tree["checks"] |= {"near_copy": {"fpr": 0.08, "steps": 3}}
    tree["method"]["guidance"] = [{"kind": kind, "every": 1, "window": [0.0, 1.0]} for kind in ("longtail", "jepa")]
    run(parse(tree))
    said = " | ".join(Recording.asked)
    wanted = ("codec", "imitation", "adaptation", "interaction", "denoiser", "verifier 0", "verifier 1",
              "guidance_classifier", "epistemic", "latent classifier", "embedding", "real, seed 3", "fusion, seed 4",
              "duplicated for fusion, seed 3")  # fmt: skip
    assert [name for name in wanted if name not in said] == [], said
    assert made == ["cpu"]


def test_no_training_and_no_method_has_a_device_of_its_own() -> None:
    """No function of the library has a device by default: it comes with the Runtime."""
    root = Path(_setup.__file__).parents[1]
    text = {path: path.read_text() for path in root.rglob("*.py")}
    assert [path.name for path, source in text.items() if 'device: str = "cpu"' in source] == []
