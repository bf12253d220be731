"""Radiographs of a DICOMweb server: the right instances, byte for byte, whatever the server does."""

import csv
import itertools
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from medlt.cli import app
from medlt.data.convert import ConversionSettings, convert
from medlt.data.dicomweb import convert_server, download, parse_query, search
from medlt.data.dicomweb.server import ATTEMPTS, Instance
from medlt.folders import GROWING, digits_for
from medlt.types import InputError

Serve = Callable[..., tuple[Any, str]]
Connect = Callable[..., Any]
ALL = {"StudyDate": "19000101-"}


def silent(*_: object) -> None:
    """No progress."""


def fetch(server: Any, folder: Path, query: dict[str, str] | None = None) -> list[Any]:
    return download(server, search(server, query or ALL, silent), folder, silent)


def contents(folder: Path) -> Counter[bytes]:
    """The bytes of the files below a folder."""
    return Counter(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def sops(server: Any, **query: str) -> list[str]:
    return sorted(instance.sop for instance in search(server, query, silent))


# the same as a folder


def test_the_images_are_those_of_the_folder(serve: Serve, connect: Connect, stored: list[Any], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i, one in enumerate(stored):
        (tmp_path / "in" / f"{i}").write_bytes(one.raw)
    expected = convert(tmp_path / "in", tmp_path / "a", ConversionSettings(), workers=1)
    _, url = serve(stored)
    stages: list[tuple[str, int, int]] = []
    counts = convert_server(
        connect(url), tmp_path / "b", ConversionSettings(), query=["StudyDate=19000101-"], workers=1,
        progress=lambda *stage: stages.append(stage),
    )  # fmt: skip
    assert counts == expected
    assert (counts["converted"], counts["reasons"]) == (7, {"not_an_image": 1})
    images = [{p.name: p.read_bytes() for p in (tmp_path / out / "images").iterdir()} for out in ("a", "b")]
    assert images[0] == images[1]
    tables = [pd.read_parquet(tmp_path / out / "manifest.parquet").drop(columns="source") for out in ("a", "b")]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert contents(tmp_path / "b/.downloads/files") == Counter(one.raw for one in stored)
    assert [stage for stage in stages if stage[1] == stage[2]] == [
        ("studies", 5, 5), ("instances", 8, 8), ("files", 8, 8),
    ]  # fmt: skip


# the search


@pytest.mark.parametrize("cap", [1, 2, 3, 1000])
def test_every_page_is_read(serve: Serve, connect: Connect, stored: list[Any], tmp_path: Path, cap: int) -> None:
    _, url = serve(stored, cap=cap)
    assert fetch(connect(url), tmp_path / "d") == []
    assert contents(tmp_path / "d/files") == Counter(one.raw for one in stored)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"Modality": "CT"}, [4]),
        ({"Modality": "DX,CR"}, [0, 1, 3, 5, 6, 7]),
        ({"Modality": "DX,CR", "StudyDate": "20200101-20201231"}, [0, 1, 3]),
        ({"PatientID": "MRN-4"}, [5, 6]),
        ({"PatientName": "Quimby?Wanda4"}, [5, 6]),
        ({"SOPInstanceUID": "1.2.3.2.3.3"}, [3]),
        ({"Modality": "CR", "PatientID": "MRN-*"}, [3, 6, 7]),
        ({"PatientID": "?RN-5"}, [7]),
        ({"Modality": "?R"}, [2, 3, 6, 7]),
    ],
)
@pytest.mark.parametrize("unquotes", [True, False])
def test_a_search_has_what_matches_and_nothing_else(
    serve: Serve, connect: Connect, stored: list[Any], query: dict[str, str], expected: list[int], unquotes: bool
) -> None:
    _, url = serve(stored, unquotes=unquotes)
    assert sops(connect(url), **query) == sorted(stored[i].sop for i in expected)


@pytest.mark.parametrize("page", [1, 2, 4, 5, 100])
@pytest.mark.parametrize("options", [{"counts_from_first": True}, {"largest": 0}, {}])
def test_pages_of_servers_that_count_differently(
    serve: Serve, connect: Connect, stored: list[Any], monkeypatch: pytest.MonkeyPatch, page: int, options: Any
) -> None:
    monkeypatch.setattr("medlt.data.dicomweb.server.PAGE", page)
    _, url = serve(stored, **{name: value or page for name, value in options.items()})
    assert sops(connect(url), **ALL) == sorted(one.sop for one in stored)


def test_a_server_that_ignores_modality_gives_no_other(serve: Serve, connect: Connect, stored: list[Any]) -> None:
    archive, url = serve(stored)
    matches = archive.matches
    archive.matches = lambda one, name, wanted: name == "Modality" or matches(one, name, wanted)
    assert sops(connect(url), Modality="DX") == sorted(stored[i].sop for i in (0, 1, 5))


def test_a_server_without_pages_ends_with_a_warning(
    serve: Serve, connect: Connect, stored: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    _, url = serve(stored, pages=False)
    assert len(sops(connect(url), **ALL)) == 8
    assert "does not page its studies" in caplog.text


def test_nothing_matches(serve: Serve, connect: Connect, stored: list[Any]) -> None:
    _, url = serve(stored)
    with pytest.raises(InputError, match="nothing matches; check --query"):
        search(connect(url), {"Modality": "MG"}, silent)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ([], "say which part with --query"),
        (["Modality"], "write it as NAME=VALUE"),
        (["StudyDate="], "write it as NAME=VALUE"),
        (["Modalty=DX"], "did you mean 'Modality'"),
        (["limit=3"], "no DICOM attribute"),
        (["ModalitiesInStudy=DX"], "use Modality=DX"),
    ],
)
def test_a_bad_query(query: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_query(query)


def test_values_of_one_attribute_add_up() -> None:
    assert parse_query(["Modality=DX", "PatientID=a=b", "Modality=CR"]) == {"Modality": "DX,CR", "PatientID": "a=b"}


# faults


@pytest.mark.parametrize("fault", ["500", "503", "429", "cut", "unlengthed", "drop"])
def test_a_fault_that_passes_leaves_no_trace(
    serve: Serve, connect: Connect, stored: list[Any], tmp_path: Path, fault: str
) -> None:
    archive, url = serve(stored, faults={one.sop: [fault] for one in stored})
    assert fetch(connect(url), tmp_path / "d") == []
    assert contents(tmp_path / "d/files") == Counter(one.raw for one in stored)
    assert set(archive.retrieved.values()) == {2}


def test_a_part_that_is_not_multipart_is_taken(
    serve: Serve, connect: Connect, stored: list[Any], tmp_path: Path
) -> None:
    _, url = serve(stored, faults={stored[0].sop: ["plain"]})
    assert fetch(connect(url), tmp_path / "d") == []
    assert contents(tmp_path / "d/files") == Counter(one.raw for one in stored)


@pytest.mark.parametrize(
    ("fault", "problem", "tries"),
    [
        ("404", "HTTP 404", 1),
        ("403", "HTTP 403", 1),
        ("500", "HTTP 500", ATTEMPTS),
        ("cut", "cut short", ATTEMPTS),
        ("unlengthed", "cut short", ATTEMPTS),
        ("drop", "no answer", ATTEMPTS),
        ("html", "another content", 1),
        ("other", "another content", 1),
    ],
)
def test_a_fault_that_stays_is_one_line_and_stops_nothing(
    serve: Serve, connect: Connect, stored: list[Any], tmp_path: Path, fault: str, problem: str, tries: int
) -> None:
    bad = stored[3]
    archive, url = serve(stored, faults={bad.sop: [f"always {fault}"]})
    (failed,) = fetch(connect(url), tmp_path / "d")
    assert (failed.sop, failed.problem) == (bad.sop, problem)
    assert archive.retrieved[bad.sop] == tries
    assert contents(tmp_path / "d/files") == Counter(one.raw for one in stored if one is not bad)
    with (tmp_path / "d/not_retrieved.csv").open(newline="") as handle:
        (row,) = csv.DictReader(handle)
    assert row == {
        "file": failed.file, "problem": problem, "study_uid": "1.2.3.2", "series_uid": "1.2.3.2.3", "sop_uid": bad.sop,
    }  # fmt: skip


def test_a_second_call_retrieves_what_is_missing(
    serve: Serve, connect: Connect, stored: list[Any], tmp_path: Path
) -> None:
    archive, url = serve(stored, faults={stored[3].sop: ["404"], stored[5].sop: ["404"]})
    server = connect(url)
    assert len(fetch(server, tmp_path / "d")) == 2
    torn = tmp_path / "d/files/.0123.dcm.99.tmp.dcm"
    torn.write_bytes(stored[0].raw[:500])
    archive.retrieved.clear()
    assert fetch(server, tmp_path / "d") == []
    assert archive.retrieved == {stored[3].sop: 1, stored[5].sop: 1}
    assert contents(tmp_path / "d/files") == Counter(one.raw for one in stored)


def test_downloads_are_in_subfolders(serve: Serve, connect: Connect, stored: list[Any], tmp_path: Path) -> None:
    """None of them holds more than 8 of as many files as need two digits for that."""
    names = [Instance("1.2", "1.2.3", f"1.2.3.{number}").file for number in range(120)]
    assert digits_for(len(names), 8) == GROWING
    assert max(Counter(Path(name).parent for name in names).values()) <= 8
    server, files = connect(serve(stored)[1]), tmp_path / "d/files"
    assert fetch(server, tmp_path / "d") == []
    assert {path.relative_to(files).as_posix() for path in files.rglob("*.dcm")} == {
        instance.file for instance in search(server, ALL, silent)
    }
    (inside := next(files.iterdir())).rename(tmp_path / "moved")
    inside.symlink_to(tmp_path / "moved")
    with pytest.raises(InputError, match="is a link"):
        fetch(server, tmp_path / "d")


def test_a_run_that_was_interrupted_goes_on(serve: Serve, connect: Connect, stored: list[Any], tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("instances", 3):
            raise KeyboardInterrupt

    archive, url = serve(stored)
    server = connect(url)
    with pytest.raises(KeyboardInterrupt):
        download(server, search(server, ALL, silent), tmp_path / "d", stop)
    kept = contents(tmp_path / "d/files").total()
    assert kept >= 3
    archive.retrieved.clear()
    assert fetch(server, tmp_path / "d") == []
    assert archive.retrieved.total() == 8 - kept
    assert contents(tmp_path / "d/files") == Counter(one.raw for one in stored)


def test_a_study_without_a_list_is_one_line(serve: Serve, connect: Connect, stored: list[Any], tmp_path: Path) -> None:
    _, url = serve(stored, search_faults={"/dicom-web/studies/1.2.3.1/series": ["always 500"]})
    (failed,) = fetch(connect(url), tmp_path / "d")
    assert (failed.study, failed.series, failed.problem) == ("1.2.3.1", "", "HTTP 500")
    assert contents(tmp_path / "d/files") == Counter(one.raw for one in stored[3:])


HOSTILE = ("../../../../evil", "..", "1.2/../3", "1.2?x=1", "%2e%2e", "1.2\r\nX: y", "", "9" * 65)


@pytest.mark.parametrize("level", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_a_hostile_uid_is_neither_a_path_nor_part_of_a_url(
    serve: Serve, connect: Connect, stored: list[Any], tmp_path: Path, level: str
) -> None:
    bad = [replace(stored[3], tags=stored[3].tags | {level: uid}) for uid in HOSTILE]
    archive, url = serve([*stored, *bad])
    (tmp_path / "a/b").mkdir(parents=True)
    failed = fetch(connect(url), tmp_path / "a/b/d")
    assert {one.problem for one in failed} == {"not a UID"}
    assert {p.name for p in tmp_path.iterdir()} == {"a"}
    assert {p.name for p in (tmp_path / "a/b").iterdir()} == {"d"}
    assert contents(tmp_path / "a/b/d/files") == Counter(one.raw for one in stored)
    assert not [path for path in archive.paths for uid in HOSTILE if uid and uid in path]
    if level == "SOPInstanceUID":
        assert sorted(one.sop for one in failed) == sorted(HOSTILE)


def test_equal_instance_uids_of_two_studies_are_two_files(
    serve: Serve, connect: Connect, stored: list[Any], tmp_path: Path
) -> None:
    stored[3].tags["SOPInstanceUID"] = stored[4].tags["SOPInstanceUID"]
    stored[3].raw = stored[4].raw
    _, url = serve(stored)
    assert fetch(connect(url), tmp_path / "d") == []
    assert sum(contents(tmp_path / "d/files").values()) == 8


def test_a_server_that_is_gone_ends_the_run(
    serve: Serve, connect: Connect, stored: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medlt.data.dicomweb.run.MOST_SILENT", 3)
    archive, url = serve(stored, faults={one.sop: ["always drop"] for one in stored[2:]})
    with pytest.raises(InputError, match="no answer any more; run the same command again to resume"):
        fetch(connect(url), tmp_path / "d")
    assert contents(tmp_path / "d/files").keys() >= {stored[0].raw, stored[1].raw}
    archive.search_faults |= {f"/dicom-web/studies/1.2.3.{i}/series": ["always drop"] for i in range(2, 6)}
    with pytest.raises(InputError, match="no answer any more; run the same command again to resume"):
        search(connect(url), ALL, silent)


def test_no_server(connect: Connect) -> None:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{port.getsockname()[1]}/dicom-web"
    with pytest.raises(InputError, match=r"the search failed \(no answer\); check the URL"):
        search(connect(url), ALL, silent)


@pytest.mark.parametrize(("fault", "problem"), [("404", "HTTP 404"), ("html", "not a DICOMweb answer")])
def test_a_search_that_fails(serve: Serve, connect: Connect, stored: list[Any], fault: str, problem: str) -> None:
    _, url = serve(stored, search_faults={"/dicom-web/studies": [f"always {fault}"]})
    with pytest.raises(InputError, match=f"the search failed .{problem}.; check the URL"):
        search(connect(url), ALL, silent)


# login and TLS


@pytest.mark.parametrize("login", ["reader:pass:word", "eyJhbGciOi.J9-_token", "jürgen:schlüssel"])
@pytest.mark.parametrize("given", ["file", "variable"])
def test_a_login(
    serve: Serve, connect: Connect, stored: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, login: str,
    given: str,
) -> None:  # fmt: skip
    _, url = serve(stored, login=login)
    (tmp_path / "login").write_text(f"{login}\n")
    if given == "variable":
        monkeypatch.setenv("MEDLT_DICOMWEB_LOGIN", login)
    server = connect(url, auth=tmp_path / "login" if given == "file" else None)
    assert len(sops(server, **ALL)) == 8


def test_a_login_that_ends_midway_stops_the_run(
    serve: Serve, connect: Connect, stored: list[Any], tmp_path: Path
) -> None:
    _, url = serve(stored, faults={one.sop: ["always 401"] for one in stored})
    with pytest.raises(InputError, match="the login is missing or wrong; give it with --auth-file FILE"):
        fetch(connect(url), tmp_path / "d")


@pytest.mark.parametrize("text", ["two words", "a\nb", "\x00"])
def test_a_login_that_is_none(connect: Connect, tmp_path: Path, text: str) -> None:
    (tmp_path / "login").write_text(text)
    with pytest.raises(InputError) as caught:
        connect("https://pacs.example", auth=tmp_path / "login")
    assert "neither user:password nor a token" in str(caught.value)
    assert text not in str(caught.value)


@pytest.mark.parametrize("url", ["https://reader:secret@pacs.example/x", "https://pacs.example/x?token=secret"])
def test_a_url_with_a_secret_is_refused_and_not_repeated(connect: Connect, url: str) -> None:
    with pytest.raises(InputError) as caught:
        connect(url)
    assert "--auth-file FILE" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_http_to_another_machine_is_warned_of(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    connect("http://pacs.example/dicom-web")
    assert "not encrypted" in caplog.text
    caplog.clear()
    connect("https://pacs.example/dicom-web")
    assert caplog.text == ""


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_certificate_is_verified(serve: Serve, connect: Connect, stored: list[Any], tmp_path: Path) -> None:
    own = tmp_path / "own.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=pacs"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", own, "-out", tmp_path / "ca.pem"),
        ],
        check=True,
        capture_output=True,
    )
    own.write_text(own.read_text() + (tmp_path / "ca.pem").read_text())
    archive, url = serve(stored, certificate=own)
    with pytest.raises(InputError, match="its certificate is not trusted; give your own authority with --ca FILE"):
        search(connect(url), ALL, silent)
    assert len(sops(connect(url, ca=tmp_path / "ca.pem"), **ALL)) == 8
    archive.search_faults["/dicom-web/studies"] = ["302"]
    with pytest.raises(InputError, match="redirects https:// to http://"):
        search(connect(url, ca=tmp_path / "ca.pem"), ALL, silent)
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(InputError, match="not a PEM file of certificates"):
        connect(url, ca=tmp_path / "bad.pem")


# the command


def invoke(url: str, out: Path, *options: str) -> Any:
    return CliRunner().invoke(app, ["convert", url, str(out), "--workers", "1", *options])


def test_the_command_converts_lists_the_failure_and_resumes(serve: Serve, stored: list[Any], tmp_path: Path) -> None:
    archive, url = serve(stored, faults={stored[3].sop: ["404"]})
    done = invoke(url, tmp_path / "out", "--query", "Modality=DX,CR", "-v")
    assert done.exit_code == 1, done.output
    assert "1 file(s) failed" in done.stderr
    assert "warning: 1 not retrieved (HTTP 404: 1); see" in done.stderr
    assert not [one.sop for one in stored if one.sop in done.output]
    failures = pd.read_csv(tmp_path / "out/failures.csv")
    assert failures[["reason", "kind"]].values.tolist() == [["not_retrieved", "failed"]]
    sources = pd.read_csv(tmp_path / "out/sources.csv").set_index("source")["file"]
    missing = pd.read_csv(tmp_path / "out/.downloads/not_retrieved.csv")
    assert sources[failures["source"][0]] == missing["file"][0]
    assert missing["sop_uid"][0] == stored[3].sop
    assert len(pd.read_parquet(tmp_path / "out/manifest.parquet")) == 5
    assert (tmp_path / "out/.downloads").stat().st_mode & 0o777 == 0o700
    archive.retrieved.clear()
    done = invoke(url, tmp_path / "out", "--query", "Modality=DX,CR")
    assert done.exit_code == 0, done.output
    assert archive.retrieved == {stored[3].sop: 1}
    assert len(pd.read_parquet(tmp_path / "out/manifest.parquet")) == 6
    assert len(pd.read_csv(tmp_path / "out/failures.csv")) == 0


def test_identities_stay_in_the_private_folder(serve: Serve, stored: list[Any], tmp_path: Path) -> None:
    _, url = serve(stored)
    (tmp_path / "key").write_text("ab" * 32)
    out = tmp_path / "out"
    done = invoke(
        url, out, "--query", "PatientID=MRN-2", "--deidentify", "basic", "--key", str(tmp_path / "key"), "--quiet"
    )
    assert [p.name for p in (out / "private/downloads/files").iterdir()]
    for folder in ("private", "private/downloads"):
        assert (out / folder).stat().st_mode & 0o777 == 0o700
    private = ("private",)
    released = [p for p in out.rglob("*") if p.is_file() and p.relative_to(out).parts[0] not in private]
    assert released, done.output
    for path, secret in itertools.product(released, (b"Quimby", b"MRN-2", b"1.2.3.2")):
        assert secret not in path.read_bytes(), path


def test_a_missing_login_is_one_line_and_exit_code_2(serve: Serve, stored: list[Any], tmp_path: Path) -> None:
    _, url = serve(stored, login="reader:secret")
    done = invoke(url, tmp_path / "out", "--query", "Modality=DX")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == (
        f"medlt: {url}: the login is missing or wrong; give it with --auth-file FILE"
    )
    (tmp_path / "login").write_text("reader:wrong-secret")
    done = invoke(url, tmp_path / "out", "--query", "Modality=DX", "--auth-file", str(tmp_path / "login"), "-v")
    assert done.exit_code == 2
    assert "secret" not in done.output


def test_an_output_of_other_settings_is_refused_before_any_request(
    serve: Serve, stored: list[Any], tmp_path: Path
) -> None:
    archive, url = serve(stored)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "own.txt").write_text("x")
    done = invoke(url, tmp_path / "out", "--query", "Modality=DX")
    assert (done.exit_code, archive.paths) == (2, [])
    assert "not begun by 'medlt convert'" in done.stderr


def test_a_dry_run_only_searches(serve: Serve, stored: list[Any], tmp_path: Path) -> None:
    archive, url = serve(stored)
    done = invoke(url, tmp_path / "out", "--query", "Modality=DX,CR", "--dry-run", "--json", "--quiet")
    assert done.exit_code == 0, done.output
    assert '"modalities": {"CR": 3, "DX": 3}' in " ".join(done.stdout.split())
    assert not archive.retrieved
    assert not (tmp_path / "out").exists()


def test_options_of_a_server_need_a_url(tmp_path: Path) -> None:
    done = invoke(str(tmp_path), tmp_path / "out", "--query", "Modality=DX")
    assert done.exit_code == 2
    assert "need the URL of a DICOMweb server" in done.stderr


def test_without_the_package_one_line_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys\nsys.modules['dicomweb_client'] = None\nfrom medlt.cli import app\napp()"
    command = [sys.executable, "-c", code, "convert", "https://pacs.example", str(tmp_path / "out"), "--query", "a=b"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False)
    assert done.returncode == 2
    assert "pip install 'medlt[dicomweb]'" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_the_libraries_log_nothing(
    serve: Serve, connect: Connect, stored: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults = {f"/dicom-web/studies{path}": ["500", "drop"] for path in ("", "/1.2.3.1/series")}
    _, url = serve(stored, faults={stored[3].sop: ["cut", "404"]}, search_faults=faults)
    caplog.set_level(logging.DEBUG)
    fetch(connect(url), tmp_path / "d")
    assert {record.name for record in caplog.records} == {"medlt.data.dicomweb.run"}
    assert "1.2.3." not in caplog.text
