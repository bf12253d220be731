"""`medlt review` on a finished run: which images, resume, two readers, and folders made elsewhere."""

import json
import shutil
import threading
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from medlt.cli import app
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.recipes import review
from medlt.recipes._image_sets import open_images
from medlt.recipes.review import ReviewOptions, prepare
from medlt.review.answers import AnswerFile, read_answers, reader_file
from medlt.training.runtime import silent
from medlt.types import InputError

OPTIONS = ReviewOptions("anna", images=3)


@pytest.fixture
def run(tiny_run: Any, tmp_path: Path) -> Path:
    """A copy of a finished run without what it learned; its real images are read from their files again."""
    skip = shutil.ignore_patterns("artifacts", "denoiser", "panels")
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "run", ignore=skip))


def begun(folder: Path, options: ReviewOptions = OPTIONS, **more: Any) -> Any:
    answers = AnswerFile.open(reader_file(folder, options.reader))
    return prepare(open_images(folder, silent, **more), options, answers)


def test_images_are_held_out_real_ones_and_synthetic_ones_by_the_same_preprocessing(run: Path) -> None:
    reading = begun(run)
    whole = Manifest.read(run / "manifest.parquet")
    rows = whole.rows.loc[list(reading.uids)]
    assert rows["synthetic"].value_counts().to_dict() == {True: 3, False: 3}
    assert set(rows.loc[~rows["synthetic"], "split"]) <= {"val", "test"}
    assert torch.equal(reading.images, images(whole, 32, list(reading.uids)))
    assert len({len(reading.png(i)) for i in range(6)}) == 1
    assert b"tEXt" not in b"".join(reading.png(i) for i in range(6))


def test_no_kind_is_enlarged_more_than_the_other(run: Path) -> None:
    """Real images have 64 px, synthetic ones 32: at 64 px only the synthetic ones would be blurred."""
    with pytest.raises(InputError, match=r"--size 64: an image has 32 px only.*give 32 or less"):
        begun(run, replace(OPTIONS, size=64))
    assert begun(run, replace(OPTIONS, size=16)).images.shape == (6, 1, 16, 16)


def test_readers_read_the_same_images_in_orders_of_their_own(run: Path) -> None:
    anna, ben = begun(run), begun(run, replace(OPTIONS, reader="ben"))
    assert list(anna.uids) != list(ben.uids)
    finding = [dict(zip(one.uids, one.findings, strict=True)) for one in (anna, ben)]
    assert finding[0] == finding[1]
    for i, uid in enumerate(anna.uids):
        assert torch.equal(anna.images[i], ben.images[list(ben.uids).index(uid)])


def test_a_seed_that_was_begun_with_other_images_is_refused(run: Path) -> None:
    begun(run)
    with pytest.raises(InputError, match="begun with 3 images of each kind"):
        begun(run, replace(OPTIONS, reader="ben", images=2))
    begun(run, replace(OPTIONS, reader="ben", images=2, seed=1))


def test_only_uids_and_findings_are_written_before_an_answer(run: Path) -> None:
    before = {path for path in run.rglob("*") if path.is_file()}
    reading = begun(run)
    (made,) = {path for path in run.rglob("*") if path.is_file() and "artifacts" not in path.parts} - before
    table = pd.read_parquet(made)
    assert list(table.columns) == ["finding"]
    assert set(table.index) == set(reading.uids)


def test_train_images_of_a_private_run_are_not_shown_unless_that_is_wanted(run: Path) -> None:
    given = open_images(run, silent)
    config = given.run.config.model_copy(update={"privacy": object()})
    private = replace(given, run=replace(given.run, config=config))
    options, answers = replace(OPTIONS, splits=("train",), seed=4), AnswerFile.open(reader_file(run, "anna"))
    with pytest.raises(InputError, match="add --show-private-train"):
        prepare(private, options, answers)
    assert len(prepare(private, replace(options, private_train=True), answers).uids) == 6


def test_the_command_serves_saves_and_goes_on(run: Path) -> None:
    seen: list[list[str]] = []

    def read(address: str) -> None:
        """Answer two images as the page does, then stop."""

        def post(path: str, body: Any) -> None:
            sent = urllib.request.Request(
                address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            urllib.request.urlopen(sent, timeout=10).close()

        def reader() -> None:
            with urllib.request.urlopen(address + "state", timeout=10) as reply:
                items = json.loads(reply.read())["items"]
            seen.append([item["answer"]["origin"] for item in items])
            for i in [i for i, item in enumerate(items) if not item["answer"]["origin"]][:2]:
                body = {"image": i, "origin": "real", "plausibility": "plausible", "presence": "present", "comment": ""}
                post("answer", body)
            post("finish", {})

        threading.Thread(target=reader, daemon=True).start()

    for answered in (2, 4):
        done = review.main(run, OPTIONS, opened=read)
        assert (done.answered, done.images) == (answered, 6)
        assert len(read_answers(done.file)) == answered
    assert [sum(map(bool, one)) for one in seen] == [0, 2]
    shown = CliRunner().invoke(app, ["review", str(run), "--results", "--json", "--quiet"])
    assert shown.exit_code == 0, shown.stderr
    assert json.loads(shown.stdout)["readings"] == {"anna": 4}


def test_two_processes_of_one_reader_do_not_overwrite_each_other(run: Path) -> None:
    from medlt.files import locked

    with locked(run / "review" / ".anna.lock", "test"), pytest.raises(InputError, match="another process"):
        review.main(run, OPTIONS)


def test_a_folder_made_elsewhere_is_read_beside_the_real_images_of_a_run(run: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(run / "images", tmp_path / "elsewhere"))
    reading = begun(elsewhere, against=run)
    assert sorted(reading.uids) == sorted(begun(run).uids)
    assert (elsewhere / "review" / "seed-0.parquet").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--results"], "no reader has answered yet"),
        ([], "give the reader's name with --reader"),
        (["--reader", "../x"], "--reader '../x'"),
        (["--reader", "a", "--split", "all"], "--split all: use train, val, test"),
        (["--reader", "a", "--questions", "x"], "--questions x: use origin, plausibility, presence"),
        (["--reader", "a", "--against", "x"], "is a run; leave out"),
    ],
)
def test_a_mistake_is_one_clear_line(run: Path, options: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["review", str(run), "--quiet", *options])
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_folder_that_is_no_run_is_one_clear_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["review", str(tmp_path), "--reader", "a", "--quiet"])
    assert done.exit_code == 2
    assert (
        "is no finished run; give the folder of one, or for images made elsewhere a run with --against" in done.stderr
    )
