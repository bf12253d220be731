"""`medlt check` on a run and on folders made elsewhere: what is planted is named, and what is right passes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from medlt.checks.folds import CrossFitClassifiers
from medlt.cli import app
from medlt.evaluation.sources import Verifiers
from medlt.recipes._image_sets import open_images
from medlt.recipes.check import CheckOptions, check_labels, main
from medlt.review.answers import ReaderAnswer, as_csv
from medlt.training.runtime import silent

READ = (ReaderAnswer(0, "plain", "Mass", "real", "implausible", "absent"),)


@pytest.fixture(scope="module")
def run(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run, with its verifiers."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path_factory.mktemp("check") / "run"))


def squares(folder: Path, pixels: dict[str, np.ndarray], label: str = "Mass") -> Path:
    """A folder of images in 8 bit, all labelled with one finding."""
    folder.mkdir()
    for name, image in pixels.items():
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{name}.png")
    table = pd.DataFrame({"file_name": [f"{name}.png" for name in pixels], "finding": label})
    table.to_csv(folder / "metadata.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def planted(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of a check of a folder with a flat, a saturated and a broken image, and with copies."""
    given = open_images(run, silent)
    real = list(given.cohort.train.rows.index[:2])
    first, second = (given.real([uid], 32)[0, 0].numpy() for uid in real)
    rng = np.random.default_rng(3)
    plain = rng.integers(40, 200, (32, 32))
    pixels = {"plain": plain, "twin": plain, "flat": np.full((32, 32), 99), "copy": first, "mirror": second[:, ::-1],
              "clipped": np.where(plain > 60, 255, plain)}  # fmt: skip
    folder = squares(tmp_path_factory.mktemp("planted") / "elsewhere", pixels)
    (folder / "broken.png").write_bytes(b"no image")
    with (folder / "metadata.csv").open("a") as table:
        table.write("broken.png,Mass\n")
    (folder / "review").mkdir()
    (folder / "review" / "anna.csv").write_bytes(as_csv(READ))
    (folder / "verdicts.csv").write_text("uid,verdict,comment\ntwin,reject,two hearts\nflat,accept,\n")
    done = CliRunner().invoke(app, ["check", str(folder), "--against", str(run), "--json", "--quiet", "--verdicts",
                                    str(folder / "verdicts.csv")])  # fmt: skip
    assert done.exit_code == 1, done.stderr
    return {"folder": folder, "real": real, **json.loads(done.stdout)}


@pytest.mark.parametrize(
    ("check", "uids"),
    [("readable", ["broken"]), ("flat", ["flat"]), ("saturated", ["clipped"]), ("copy", ["twin"]),
     ("real_copy", ["copy", "mirror"]), ("finite", []), ("readers", ["plain", "twin"])],
)  # fmt: skip
def test_what_is_planted_is_named(planted: dict[str, Any], check: str, uids: list[str]) -> None:
    (one,) = [one for one in planted["checks"] if one["check"] == check]
    assert sorted(one["uids"]) == uids
    assert one["status"] == ("failed" if uids else "passed")
    assert "\n" not in one["conclusion"]


def test_the_tables_hold_a_row_for_each_check_and_image(planted: dict[str, Any]) -> None:
    assert json.loads((planted["folder"] / "check.json").read_text())["checks"] == planted["checks"]
    table = pd.read_parquet(planted["folder"] / "check.parquet")
    assert table.groupby("check").size().loc[["flat", "copy", "real_copy"]].to_list() == [6, 6, 6]
    copied = table[(table["check"] == "real_copy") & ~table["passed"]]
    assert [reason.rsplit(" ", 1)[1] for reason in copied["reason"]] == planted["real"]
    assert set(table.loc[table["check"] == "readers", "reason"]) == {
        "anna: implausible", "anna: label present, read absent", "verdicts: rejected"
    }  # fmt: skip
    (one,) = [one for one in planted["checks"] if one["check"] == "fingerprint"]
    assert one["status"] == "not measured"


def brightness(images: Any) -> Tensor:
    """A verifier that sees nothing but the mean of an image."""
    pixels = images[:] if not isinstance(images, Tensor) else images
    mean: Tensor = pixels.float().flatten(1).mean(1, keepdim=True) / 255
    return mean.repeat(1, 10)


def test_planted_label_errors_are_named_and_right_labels_pass(run: Path, tmp_path: Path) -> None:
    """The verifiers read brightness, and real images with Mass are bright; four images labelled Mass are dark."""
    rng = np.random.default_rng(5)
    bright = {f"right{i}": rng.integers(150, 250, (32, 32)) for i in range(12)}
    dark = {f"wrong{i}": rng.integers(0, 60, (32, 32)) for i in range(4)}
    given = open_images(squares(tmp_path / "some", bright | dark), silent, run)
    findings, uids = list(given.cohort.findings), list(given.cohort.train.rows.index)
    scores = pd.DataFrame(np.linspace(0.5, 0.9, len(uids))[:, None].repeat(len(findings), 1), uids, findings)
    labels = pd.DataFrame(np.arange(len(uids))[:, None].repeat(len(findings), 1) % 2, uids, findings, dtype=float)
    fold = pd.Series(np.arange(len(uids)) // 2 % 2, uids, name="fold")
    verifiers = Verifiers(CrossFitClassifiers((brightness, brightness), fold, scores), labels, 32)
    done = check_labels(given, verifiers)
    assert done.status == "failed"
    assert sorted(done.uids) == sorted(dark)
    assert "more than by chance: Mass" in done.conclusion
    right = replace(given, made=given.made.where(pd.Series(given.made.rows.index.isin(bright), given.made.rows.index)))
    assert check_labels(right, verifiers).status == "passed"


def test_a_finished_run_is_checked_with_its_own_verifiers_and_codec(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    done = main(run, CheckOptions())
    by = {one.check: one for one in done.outcomes}
    assert {name for name, one in by.items() if one.status == "not measured"} == {"readers"}
    assert by["copy"].status == by["real_copy"].status == "passed"
    assert "AUROC" in by["fingerprint"].conclusion
    made = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()} - {
        path.relative_to(run).as_posix() for path in before
    }
    assert {name for name in made if not name.startswith("artifacts/")} <= {"check.json", "check.parquet", "review"}
    assert all(path.stat().st_mtime_ns == at for path, at in before.items() if "artifacts" not in path.parts)


def test_images_of_a_run_without_a_verifier_are_not_scored(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medlt.config import RunConfig

    monkeypatch.setattr(RunConfig, "data_independent", property(lambda self: True))
    done = {one.check: one for one in main(run, CheckOptions(out=run / "private")).outcomes}
    assert done["label_consistency"].status == done["fingerprint"].status == "not measured"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["nowhere"], "is no finished run; give the folder of one"),
        (["codec"], "Missing argument"),
        (["x", "--out"], "--out"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path: Path, given: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["check", *given, *(["--quiet"] if given == ["nowhere"] else [])])
    assert done.exit_code == 2
    assert message.lower() in done.stderr.lower()
    assert len(done.stderr.strip().splitlines()) == 1
