"""The options of `medlt convert`, as they are typed."""

import json
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from medlt.cli import app

Film = Callable[..., bytes]


@pytest.fixture
def source(film: Film, tmp_path: Path) -> Path:
    """A zip behind a link, with films of three makers, one of them of two frames."""
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "store.zip", "w") as archive:
        for at, name in enumerate(("ACME", "Other", "Third")):
            archive.writestr(name, film(np.roll(ramp, at), Manufacturer=name, StationName=f"S{at}"))
        archive.writestr("cine", film(ramp, Manufacturer="ACME", NumberOfFrames=2, PixelData=ramp.tobytes() * 2))
    (tmp_path / "in/exam.zip").symlink_to(tmp_path / "store.zip")
    return tmp_path / "in"


def test_the_options_work_together(source: Path, tmp_path: Path) -> None:
    options = "--include Manufacturer=acme,other --exclude StationName=S1 --tags StationName,KVP --follow-links"
    options += " --frames all --body-part CHEST --size 16 --reduce 2 --preview --workers 1 --json"
    done = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "out"), *options.split()])
    assert done.exit_code == 0, done.output
    counts = json.loads(done.stdout)
    assert (counts["converted"], counts["reasons"]) == (3, {"filtered": 2, "unzipped": 1})
    rows = pd.read_parquet(tmp_path / "out/manifest.parquet")
    assert sorted(rows["StationName"]) == ["", "", "S0"]
    assert sorted(rows["frame"]) == [1, 1, 2]
    assert (tmp_path / "out/preview.html").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--tags StationNam", "did you mean 'StationName'"),
        ("--include Manufacturer", "has no '='"),
        ("--exclude Manufactur=A", "did you mean 'Manufacturer'"),
        ("--frames every", "--frames every: unknown"),
        ("--reduce 2", "needs --size"),
        ("--reduce 8 --size 16", "use 2 or 4"),
    ],
)
def test_a_wrong_option_is_one_line(source: Path, tmp_path: Path, options: str, message: str) -> None:
    done = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "out"), *options.split()])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", ["", "--dry-run"])
def test_pictures_and_odd_values_raise_no_warning(film: Film, tmp_path: Path, options: str) -> None:
    """The table names the kinds of pictures beside transfer syntaxes, and no value of a file reaches the terminal."""
    (tmp_path / "in").mkdir()
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64).astype(np.uint8)).save(tmp_path / "in/a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (tmp_path / "in/b").write_bytes(film(StudyInstanceUID="1.2.odd", PatientAge="odd", AccessionNumber="odd" * 9))
    called = [sys.executable, "-W", "error", "-m", "medlt", "convert", "in", "out", "--workers", "2", *options.split()]
    done = subprocess.run(called, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, "arning" in done.stderr, "odd" in done.stderr + done.stdout) == (0, False, False), done
    assert "Explicit VR Little Endian" in done.stdout
    assert "png" in done.stdout
