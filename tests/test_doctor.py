"""The doctor decodes real frames, and names each problem with what to do about it."""

import json
import subprocess
import sys
import tomllib
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from pydicom.pixels import get_decoder
from pydicom.uid import UID, JPEG2000Lossless, JPEGLosslessSV1, RLELossless, UID_dictionary
from typer.testing import CliRunner

from medlt import config, doctor
from medlt.cli import app
from medlt.config import catalogue
from medlt.data.dicom import selftest
from medlt.types import InputError

ROOT = Path(__file__).parents[1]
Usage = namedtuple("Usage", "total used free")


def state(report: doctor.DoctorReport, section: str, name: str) -> doctor.Diagnostic:
    (one,) = (d for d in report.diagnostics if (d.section, d.name) == (section, name))
    return one


def decodable(syntax: str) -> bool:
    """Whether pydicom has a decoder for this UID."""
    try:
        get_decoder(UID(syntax))
    except NotImplementedError:
        return False
    return True


def test_every_syntax_that_convert_supports_is_decoded() -> None:
    results = selftest.check_codecs()
    assert {one.syntax for one in results} == {syntax for syntax in UID_dictionary if decodable(syntax)}
    assert [one for one in results if not one.passed] == []


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1, RLELossless], ids=lambda s: s.name)
def test_a_frame_that_does_not_decode_is_reported(syntax: UID, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = selftest.frames()[syntax]
    cut = selftest.Frame(frame.bits, frame.tolerance, frame.stream[: len(frame.stream) // 2])
    monkeypatch.setattr(selftest, "frames", lambda: {syntax: cut})
    result = selftest.check_codec(syntax)
    assert not result.passed
    assert result.reason
    assert result.hint.startswith("pip install ")


def test_a_frame_with_wrong_values_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "stored_values", lambda data, path: selftest.expected(12) + 1)
    assert selftest.check_codec(JPEGLosslessSV1).reason == "decodes to wrong values"


PROGRAM = """
import sys, json
sys.modules["imagecodecs"] = None
from medlt.data.dicom.selftest import check_codecs
print(json.dumps({one.name: [one.reason, one.hint] for one in check_codecs() if not one.passed}))
"""


def test_without_a_decoder_the_report_says_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    failed = json.loads(done.stdout)
    assert failed["JPEGLosslessSV1"] == ["no installed decoder", "pip install imagecodecs"]
    assert {"JPEGLossless", "RLELossless"} <= set(failed)
    assert "JPEG2000Lossless" not in failed


def test_the_json_is_flat_and_typed() -> None:
    done = CliRunner().invoke(app, ["doctor", "--json"])
    summary = json.loads(done.stdout)
    assert done.exit_code == (0 if summary["passed"] else 1)
    assert list(summary) == [
        *("versions", "device", "disk", "extras", "dicom", "configs", "offline"),
        *("passed", "problems"),
    ]
    assert summary["versions"]["torch"].startswith("2.")
    assert summary["dicom"]["JPEGLosslessSV1"] == "ok"
    assert summary["disk"]["current_folder_free_gb"] > 0
    sections = [value for value in summary.values() if isinstance(value, dict)]
    assert all(isinstance(value, str | int | float) for section in sections for value in section.values())


def test_the_table_names_every_diagnostic() -> None:
    done = CliRunner().invoke(app, ["doctor"])
    assert all(one.name in done.stdout for one in doctor.examine().diagnostics)


def test_the_table_fits_80_columns_with_names_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    long = doctor.Diagnostic("device", "cuda:0", "failed: " + "no kernel image is available " * 4, False, "update it")
    report = doctor.DoctorReport((*doctor.examine().diagnostics, long))
    monkeypatch.setattr(doctor, "examine", lambda: report)
    monkeypatch.setenv("COLUMNS", "80")
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    named = {cell.strip() for line in lines if line.startswith("│") for cell in line.split("│")[2:3]}
    assert {one.name for one in report.diagnostics} <= named
    assert {one.hint for one in report.diagnostics if one.hint not in " ".join(done.stdout.split())} == set()


def test_little_free_space_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medlt.doctor.shutil.disk_usage", lambda folder: Usage(2**40, 2**40 - 2**30, 2**30))
    done = CliRunner().invoke(app, ["doctor", "--json"])
    summary = json.loads(done.stdout)
    assert done.exit_code == 1
    assert summary["disk"]["current_folder_free_gb"] == 1.0
    assert any(f"free space in {Path.cwd()}" in problem for problem in summary["problems"])


def test_the_extras_are_those_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(extras) - {"docs", "notebooks", "dev"}


def test_a_missing_extra_is_a_note_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    report = doctor.examine()
    assert state(report, "extras", "ray").text() == "not installed; optional: pip install 'medlt[ray]'"
    assert not [one for one in report.problems if one.section == "extras"]


def test_the_program_of_ocr_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: name)
    monkeypatch.setattr("medlt.doctor.shutil.which", lambda name: None)
    assert "install the program tesseract" in state(doctor.examine(), "extras", "ocr").text()


def test_all_ready_made_configs_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLT_DATA", str(ROOT))
    configs = [one for one in doctor.examine().diagnostics if one.section == "configs"]
    assert {one.name for one in configs} == {name.partition("/")[0] for name in catalogue.names()}
    assert [one for one in configs if not one.passed or one.hint] == []


def test_an_unset_variable_of_a_config_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDLT_DATA", raising=False)
    one = state(doctor.examine(), "configs", "nih14")
    assert (one.passed, "export MEDLT_DATA=" in one.hint) == (True, True)


def test_a_broken_config_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise InputError(f"{path}: no such key")

    monkeypatch.setattr(config, "load_config", refuse)
    one = state(doctor.examine(), "configs", "demo")
    assert not one.passed
    assert "no such key" in one.text()


def test_an_installation_without_configs_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "names", lambda: ())
    assert not state(doctor.examine(), "configs", "all").passed


@pytest.mark.parametrize(
    ("driver", "cuda", "passed", "text"),
    [
        (False, None, True, "none"),
        (True, None, False, "CUDA build of torch"),
        (True, "12.8", False, "update the NVIDIA driver: torch needs CUDA 12.8"),
    ],
)
def test_a_gpu_that_torch_cannot_use(driver: bool, cuda: str | None, passed: bool, text: str) -> None:
    one = doctor._no_gpu(driver, cuda)
    assert one.passed == passed
    assert text in one.text()


def test_a_gpu_that_cannot_compute_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available\nmore")

    monkeypatch.setattr(torch, "ones", refuse)
    one = doctor._gpu(0)
    assert (one.name, one.value, one.passed) == ("cuda:0", "failed: no kernel image is available", False)
