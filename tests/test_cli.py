"""The command line as a user meets it: help, one clear line for a mistake, exit codes, nothing half-written."""

import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
from PIL import Image
from rich.text import Text
from typer.core import TyperGroup
from typer.testing import CliRunner

from medlt import config
from medlt._version import __version__
from medlt.cli import app
from medlt.cli.app import ORDER
from medlt.cli.edge import edge
from medlt.cli.recipes import _finish
from medlt.cli.terminal import Terminal
from medlt.store import Store

FINDINGS = ("Mass", "Hernia", "No_Finding")
LONG = "Enlarged_Cardiomediastinum"
Spoil = Callable[[pd.DataFrame, Path], pd.DataFrame]


def table(folder: Path, n: int = 12) -> pd.DataFrame:
    """A small, right collection of PNG files."""
    rows = []
    for i in range(n):
        Image.new("L", (64, 64), 10 * i).save(folder / f"{i}.png")
        split = ("train", "train", "val", "test")[i % 4]
        rows.append({"uid": f"u{i}", "path": f"{i}.png", "patient_id": f"p{i}", "split": split, "view": "PA"})
    labels = {f: [float((i // 4 + k) % 3 == 0) for i in range(n)] for k, f in enumerate(FINDINGS)}
    return pd.DataFrame(rows).assign(**labels)


def invoke(tmp_path: Path, *more: str) -> tuple[int, str]:
    """`medlt run` on the collection in tmp_path; exit code and stderr."""
    (tmp_path / "c.yaml").write_text(
        f"output_dir: {tmp_path}/run\nsize: 32\ntargets: {{tail_below: 5, head_above: 8, count: 6}}\n"
        f"data: {{kind: csv, table: {tmp_path}/labels.csv, findings: [{', '.join(FINDINGS)}]}}\n"
        "codec: {kind: train}\n"
    )
    done = CliRunner().invoke(app, ["run", str(tmp_path / "c.yaml"), *more])
    return done.exit_code, done.stderr


def errors(stderr: str) -> list[str]:
    """The lines of stderr that are no progress."""
    return [line for line in stderr.strip().splitlines() if not re.match(r"\d{4}-\d\d-\d\d ", line)]


def require_nothing_made(tmp_path: Path, message: str) -> None:
    """No folder; or where images had to be read first, one with their cache alone, which any other config may use."""
    run = tmp_path / "run"
    assert {path.name for path in run.glob("*")} <= {".lock", "artifacts", "config.yaml", "run.json", "run.log"}
    assert all(path.name.split("-")[0] in ("images", "pixels") for path in run.glob("artifacts/*"))
    assert message in invoke(tmp_path, "seed=5")[1]


def edit(column: str, value: object, row: int = 0) -> Spoil:
    def spoil(rows: pd.DataFrame, folder: Path) -> pd.DataFrame:
        rows[column] = rows[column].astype(object)
        rows.loc[row, column] = value
        return rows

    return spoil


def unreadable(rows: pd.DataFrame, folder: Path) -> pd.DataFrame:
    (folder / "0.png").write_bytes(b"not an image")
    return rows


def emptied(rows: pd.DataFrame, folder: Path) -> pd.DataFrame:
    for path in folder.glob("*.png"):
        path.unlink()
    return rows


MISTAKES: dict[str, tuple[Spoil, str]] = {
    "missing column": (lambda rows, folder: rows.drop(columns="Hernia"), "missing column 'Hernia'"),
    "duplicated uid": (edit("uid", "u1"), "u1"),
    "label 2": (edit("Mass", 2), "label 2"),
    "patient in two splits": (edit("patient_id", "p2"), "the patient of uid u0 is in splits"),
    "missing file": (edit("path", "gone.png"), "gone.png"),
    "unreadable image": (unreadable, "u0: neither DICOM nor PNG"),
    "no positive": (lambda rows, folder: rows.assign(Hernia=0.0), "Hernia has no positive"),
    "empty folder": (emptied, "no such file"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_bad_data_is_one_clear_line_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    spoil, message = MISTAKES[name]
    spoil(table(tmp_path), tmp_path).to_csv(tmp_path / "labels.csv", index=False)
    code, stderr = invoke(tmp_path)
    assert code == 2
    assert message in stderr
    assert len(errors(stderr)) == 1
    require_nothing_made(tmp_path, message)


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    table(tmp_path).to_csv(tmp_path / "labels.csv", index=False)
    (tmp_path / "run").write_text("in the way")
    code, stderr = invoke(tmp_path)
    assert code == 2
    assert re.search(r"run: is a file; choose another --out", stderr)
    assert len(errors(stderr)) == 1


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"planned": 2, "kept": 0}, ["none of 2 images passed the checks"]),
        ({"planned": 2, "kept": 0, "failed": 1}, ["1 images could not be read", "none of 2 images passed the checks"]),
        ({"planned": 2, "kept": 1, "failed": 0}, []),
    ],
)
def test_a_run_that_kept_nothing_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], counts: dict[str, int], message: list[str]
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"counts": counts}))
    code = 0
    try:
        with Terminal(as_json=True) as terminal:
            _finish(tmp_path, terminal)
    except typer.Exit as ended:
        code = ended.exit_code
    lines = capsys.readouterr().err.splitlines()
    assert code == bool(message)
    assert [line.removeprefix("medlt: ").split(";")[0] for line in lines] == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("codec={kind: folder, path: nowhere}", "nowhere"),
        ("sparse.gruops=3", "sparse.gruops is not a known key"),
        ("targets.count=1", "nothing to fill"),
    ],
)
def test_a_bad_setting_is_one_clear_line_and_nothing_is_written(tmp_path: Path, override: str, message: str) -> None:
    table(tmp_path).to_csv(tmp_path / "labels.csv", index=False)
    code, stderr = invoke(tmp_path, override)
    assert code == 2
    assert message in stderr
    assert len(errors(stderr)) == 1
    assert not (tmp_path / "run").exists()


def test_a_codec_folder_that_is_none_is_told(tmp_path: Path) -> None:
    table(tmp_path).to_csv(tmp_path / "labels.csv", index=False)
    (tmp_path / "codec").mkdir()
    code, stderr = invoke(tmp_path, f"codec={{kind: folder, path: {tmp_path}/codec}}")
    assert (code, "config.json" in stderr) == (2, True)
    assert not (tmp_path / "run").exists()


def commands(group: typer.Typer = app) -> list[tuple[str, ...]]:
    """Every command, as its words."""
    root = typer.main.get_command(group)
    assert isinstance(root, TyperGroup)
    return [
        (name, *below)
        for name, command in root.commands.items()
        for below in ([(one,) for one in command.commands] if isinstance(command, TyperGroup) else [()])
    ]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_has_help_with_an_example_that_it_accepts(command: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*command, "--help"])
    assert done.exit_code == 0
    for part in ("--json", "-q, --quiet", "-v, --verbose", "Example"):
        assert part in done.stdout
    typed_as = " ".join(command).replace("release make", "release").replace("check synthetic", "check")
    examples = re.findall(rf"^  +medlt ({typed_as}\b.*)$", done.stdout, re.MULTILINE)
    assert examples
    assert max(map(len, done.stdout.splitlines())) <= 80
    root = typer.main.get_command(app)
    for typed in examples:
        words = shlex.split(typed.partition(">")[0])
        with root.make_context("medlt", words) as context:
            found = root
            while isinstance(found, TyperGroup):
                _, found, words = found.resolve_command(context, words)
            found.make_context("medlt", words)


def test_the_program_lists_its_commands_in_the_order_of_use() -> None:
    done = CliRunner().invoke(app, ["--help"])
    listed = re.findall(r"^  (\w+)  ", done.stdout.partition("Commands:")[2], re.MULTILINE)
    assert listed[:8] == ["doctor", "demo", "convert", "init", "deidentify", "manifest", "join", "validate"]
    assert listed == list(ORDER)
    assert set(listed) == {command[0] for command in commands()}
    assert CliRunner().invoke(app, ["--version"]).stdout == f"medlt {__version__}\n"


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("agument c.yaml", "medlt has no command 'agument'; did you mean 'augment'? use one of doctor, demo, "),
        ("publish RUN OUT", "medlt has no command 'publish'; use one of doctor, demo, convert, "),
        ("config lst", "medlt config has no command 'lst'; did you mean 'list'? use one of list, copy, schema"),
        ("demo --sead 3", "no such option: --sead; did you mean '--seed'?; see `medlt demo --help`"),
        ("run c.yaml --targets.count 3", "write a setting of the config without dashes: targets.count=VALUE; see "),
        ("demo --output here", "no such option: --output; did you mean '--out'?"),
        ("run", "missing argument 'CONFIG'; see `medlt run --help`"),
        ("demo --seed x", "invalid value for '--seed': must be a valid integer; see `medlt demo --help`"),
        (
            "audit demo --fpr 3",
            "invalid value for '--fpr': must be less than or equal to 0.2; see `medlt audit --help`",
        ),
    ],
)
def test_a_typing_mistake_is_one_line_that_says_what_to_type(typed: str, line: str) -> None:
    done = CliRunner().invoke(app, typed.split())
    assert (done.exit_code, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert line in done.stderr
    as_json = CliRunner().invoke(app, [*typed.split(), "--json"])
    assert json.loads(as_json.stdout)["exit_code"] == as_json.exit_code == 2
    assert as_json.stderr.startswith("medlt: ")


@pytest.mark.parametrize(
    "typed",
    [
        *("run nowhere.yaml", "augment nowhere.yaml", "train codec nowhere.yaml", "evaluate nowhere.yaml"),
        "calibrate nowhere.yaml",
        *("report nowhere", "audit nowhere", "validate nowhere.parquet", "convert nowhere out"),
        *("manifest csv nowhere.csv out.parquet --findings Mass", "config copy nowhere", "demo --out here"),
    ],
)
def test_an_error_is_one_json_object_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").write_text("a file")
    done = CliRunner().invoke(app, [*typed.split(), "--json"])
    error = json.loads(done.stdout)
    assert list(error) == ["error", "exit_code"]
    assert error["exit_code"] == done.exit_code == 2
    assert errors(done.stderr) == [f"medlt: {error['error']}"]


def test_a_fault_of_medlt_is_json_with_its_traceback_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), edge(as_json=True):
        1 / 0  # noqa: B018
    assert json.loads(capsys.readouterr().out) == {"error": "ZeroDivisionError: division by zero", "exit_code": 1}


def test_nothing_but_the_result_reaches_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with edge(as_json=True) as terminal:
        sys.stdout.write("a library talks\n")
        with terminal.stage("work"):
            terminal("units", 1, 2)
        terminal.show({"rate": float("nan"), "count": np.int64(3), 5: (1, 2)}, lambda: "")
    out, err = capsys.readouterr()
    assert json.loads(out) == {"rate": None, "count": 3, "5": [1, 2]}
    assert "a library talks" in err
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d work: finished in 0 s$", err, re.MULTILINE)


@pytest.mark.parametrize(("volume", "shown"), [(False, []), (None, ["work: started"]), (True, ["work: started"])])
def test_quiet_shows_warnings_and_the_result_alone(
    capsys: pytest.CaptureFixture[str], volume: bool | None, shown: list[str]
) -> None:
    log = logging.getLogger("medlt.part")
    with edge(volume=volume) as terminal:
        terminal.begin("work")
        log.info("a detail")
        log.warning("a warning")
        terminal.mention("a remark")
        terminal.show_lines({}, ["the result"])
    out, err = capsys.readouterr()
    assert out == "the result\n"
    assert "medlt: warning: a warning" in err
    assert [line for line in shown if line in err] == shown
    assert ("a remark" in err) == (volume is not False)
    assert ("a detail" in err) == (volume is True)


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colour_is_left_out_where_no_color_is_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_color: str
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "NO_COLOR": no_color}.items():
        monkeypatch.setenv(name, value)
    with edge() as terminal:
        terminal.show({}, lambda: Text("harms", style="red"))
    assert capsys.readouterr().out == ("harms\n" if no_color else "\x1b[31mharms\x1b[0m\n")


def complete(*words: str) -> list[str]:
    """What the shell offers after these words."""
    asked = {"_MEDLT_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    return CliRunner().invoke(app, [], env=asked, prog_name="medlt").stdout.split()


def test_the_shell_completes_commands_configs_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text("")
    (tmp_path / "demo.txt").write_text("")
    assert complete("medlt", "aug") == ["augment"]
    assert complete("medlt", "run", "demo") == ["demo/demo", "demo.yaml"]
    assert complete("medlt", "config", "copy", "dicom_folder/f") == ["dicom_folder/fusion"]
    assert complete("medlt", "train", "den") == ["denoiser"]
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).stdout


def test_validate_counts_and_exits_by_what_it_found(tmp_path: Path) -> None:
    from medlt.data.layouts import from_csv

    table(tmp_path).to_csv(tmp_path / "labels.csv", index=False)
    from_csv(table=tmp_path / "labels.csv", findings=FINDINGS).write(tmp_path / "manifest.parquet")
    good = CliRunner().invoke(app, ["validate", str(tmp_path / "manifest.parquet"), "--json"])
    assert good.exit_code == 0
    assert json.loads(good.stdout)
    (tmp_path / "3.png").write_bytes(b"broken")
    some = CliRunner().invoke(app, ["validate", str(tmp_path / "manifest.parquet")])
    assert some.exit_code == 1
    none = CliRunner().invoke(app, ["validate", str(tmp_path / "nowhere.parquet")])
    assert none.exit_code == 2
    assert len(none.stderr.strip().splitlines()) == 1


def test_validate_with_a_config_leaves_no_image_to_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medlt.data import pixels
    from medlt.data.layouts import from_csv
    from medlt.data.manifest import Manifest

    table(tmp_path).to_csv(tmp_path / "labels.csv", index=False)
    from_csv(table=tmp_path / "labels.csv", findings=FINDINGS).write(tmp_path / "manifest.parquet")
    own = "output_dir: run\ndata: {kind: manifest, path: manifest.parquet}\ncodec: {kind: identity}\nsize: 32\n"
    (tmp_path / "alone.yaml").write_text(own)
    (tmp_path / "shared.yaml").write_text(own + "artifacts_dir: shared\nclassifier: {size: 48}\n")
    command = ["validate", str(tmp_path / "manifest.parquet"), "--config"]
    refused = CliRunner().invoke(app, [*command, str(tmp_path / "alone.yaml")])
    assert (refused.exit_code, "has no artifacts_dir" in refused.stderr) == (2, True)
    assert CliRunner().invoke(app, [*command, str(tmp_path / "shared.yaml")]).exit_code == 0

    def never(raw: bytes, path: Path) -> Any:
        raise AssertionError(f"{path} was decoded again")

    monkeypatch.setattr(pixels, "levels_in", never)
    manifest = Manifest.read(tmp_path / "manifest.parquet")
    cache = pixels.PixelCache(Store(tmp_path / "shared"), 1)
    for size in (32, 48):
        assert cache.prepare(manifest, (size,))[1].empty
        assert len(cache.images(manifest, size)) == len(manifest.rows)
    assert CliRunner().invoke(app, [*command, str(tmp_path / "shared.yaml")]).exit_code == 0


def test_validate_says_what_the_test_images_can_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medlt.data.layouts import from_csv

    monkeypatch.setenv("COLUMNS", "80")
    rows = table(tmp_path, 64)
    rows.loc[rows["split"] == "test", "Hernia"] = 0.0
    rows.rename(columns={"Mass": LONG}).to_csv(tmp_path / "labels.csv", index=False)
    findings = (LONG, "Hernia", "No_Finding")
    from_csv(table=tmp_path / "labels.csv", findings=findings).write(tmp_path / "manifest.parquet")
    done = CliRunner().invoke(app, ["validate", str(tmp_path / "manifest.parquet")])
    words = " ".join(done.stdout.split())
    assert "the smallest gain in AUROC that the test images can show: from 0." in words
    assert "stop: finding Hernia is never present in split test; if two patients have it, split again" in words
    assert done.exit_code == 1
    assert f"│ {LONG} │" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    done = CliRunner().invoke(app, ["validate", str(tmp_path / "manifest.parquet"), "--json"])
    gains = json.loads(done.stdout)["smallest_gain"]
    assert gains["Hernia"] is None
    assert 0 < gains[LONG] < 1


def test_report_of_no_run_is_one_clear_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["run", "augment", "train denoiser", "calibrate", "evaluate"])
def test_a_config_that_is_nowhere_is_one_clear_line(tmp_path: Path, command: str) -> None:
    done = CliRunner().invoke(app, [*command.split(), "nih14/fusoin"])
    assert done.exit_code == 2
    meant = "no such config file; did you mean 'nih14/fusion'? `medlt config list` names those that ship with medlt"
    assert done.stderr == f"medlt: nih14/fusoin: {meant}\n"


def test_configs_are_listed_copied_and_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listed = CliRunner().invoke(app, ["config", "list"]).stdout.splitlines()
    assert "demo/demo The demo: the whole job on synthetic radiographs" in " ".join(" ".join(listed).split())
    assert max(map(len, listed)) <= 80
    shipped = json.loads(CliRunner().invoke(app, ["config", "list", "--json"]).stdout)["configs"]
    assert [line.split()[0] for line in listed if line[0] != " "] == [one["name"] for one in shipped]
    whole = " ".join(" ".join(listed).split())
    assert all(one["about"].split(". ")[0].split("? ")[0].rstrip(".") in whole for one in shipped)
    kinds = {one["name"]: one["kind"] for one in shipped}
    assert (kinds["demo/demo"], kinds["nih14/verdict"]) == ("fusion", "experiment")
    assert all(one["about"] for one in shipped)
    copied = CliRunner().invoke(app, ["config", "copy", "phantom/verdict", "mine", "--json"])
    assert json.loads(copied.stdout)["written"] == ["mine/verdict.yaml", "mine/fusion.yaml", "mine/edit.yaml"]
    again = CliRunner().invoke(app, ["config", "copy", "phantom/verdict", "mine"])
    assert (again.exit_code, again.stdout) == (2, "")
    kept = tmp_path / "mine/verdict.yaml"
    assert again.stderr == f"medlt: {kept}: exists already; move it away, or give another TO\n"
    for kind, title in (("run", "RunConfig"), ("verdict", "EvaluateConfig")):
        schema = json.loads(CliRunner().invoke(app, ["config", "schema", kind]).stdout)
        assert (schema["title"], schema["additionalProperties"]) == (title, False)
    assert CliRunner().invoke(app, ["config", "schema", "recipe"]).exit_code == 2


WAITING = """
import os, signal, sys, time
from medlt.cli import app
from medlt.cli.edge import edge

@app.command()
def wait() -> None:
    with edge():
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        try:
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.__stdout__, flush=True)
            time.sleep(600)
        finally:
            print("cleaned up", file=sys.__stdout__, flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
app(["wait"])
"""


@pytest.mark.parametrize(
    ("number", "code", "message"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_ends_in_one_line_after_cleaning_up(number: signal.Signals, code: int, message: str) -> None:
    """A process that was forked dies of SIGTERM as ever, without a word."""
    command = [sys.executable, "-c", WAITING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{-signal.SIGTERM}\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (code, "cleaned up\n")
    assert err == f"medlt: {message}; run the same command again to resume\n"


def test_signals_are_handled_as_before_once_a_command_has_ended() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with edge():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_configs_for_mimic_read_what_manifest_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree of MIMIC-CXR-JPG's names with the lists of MIMIC-CXR-LT, and the command that the configs open with."""
    from medlt.data.layouts.mimic_cxr_lt import FINDINGS as MIMIC
    from medlt.data.source import open_data

    monkeypatch.chdir(tmp_path)
    for split, patient in (("train", 10000032), ("val", 11000032), ("test", 12000032)):
        image = f"0{split}"
        path = Path(f"files/p{str(patient)[:2]}/p{patient}/s5041426{patient % 7}/{image}.jpg")
        (tmp_path / "jpg" / path).parent.mkdir(parents=True)
        Image.new("L", (64, 64), 90).save(tmp_path / "jpg" / path)
        row = {"subject_id": patient, "study_id": int(path.parent.name[1:]), "dicom_id": image, "path": str(path)}
        labels = {finding: [1] for finding in MIMIC}
        table = pd.DataFrame({name: [value] for name, value in row.items()} | labels)
        table.to_csv(tmp_path / "jpg" / f"miccai2023_mimic-cxr-lt_labels_{split}.csv", index=False)
    done = CliRunner().invoke(app, ["manifest", "mimic-cxr-lt", "jpg", "mimic.parquet", "--release", "2023"])
    assert done.exit_code == 0, done.stderr
    for name in ("fusion", "longtail"):
        settings = config.load_config(Path(f"mimic_cxr_lt/{name}"))
        found = open_data(settings.data, seed=0, folder=tmp_path)
        assert (len(found.rows), found.findings) == (3, tuple(MIMIC))
    assert config.load_verdict(Path("mimic_cxr_lt/verdict")).data == settings.data


def test_the_configs_for_a_dicom_folder_read_what_convert_and_manifest_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medlt.data import phantom
    from medlt.data.source import open_data

    monkeypatch.chdir(tmp_path)
    archive = phantom.write_phantom(tmp_path / "archive", patients=20, seed=0, size=64).parent
    whole = min((archive / "dicom").rglob("*.dcm"))
    whole.with_name("cut.dcm").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    convert = ["convert", str(archive / "dicom"), "converted", "--size", "32", "--workers", "1"]
    done = CliRunner().invoke(app, convert)
    assert done.exit_code == 1
    where = "reasons are in converted/failures.csv, file names in converted/sources.csv"
    assert errors(done.stderr) == ["next: medlt init converted --labels TABLE.csv", f"medlt: 1 file(s) failed; {where}"]
    made = pd.read_parquet("converted/manifest.parquet")
    labels = pd.DataFrame({"sop_uid": made["sop_uid"], "Mass": 1, "No_Finding": 0}).reset_index(drop=True)
    labels["No_Finding"] = 1 - (mass := labels.index % 2)
    labels.assign(Mass=mass).to_csv("labels.csv", index=False)
    manifest = "manifest folder converted labelled.parquet --labels labels.csv --findings all"
    done = CliRunner().invoke(app, manifest.split())
    assert done.exit_code == 0, done.stderr
    assert errors(done.stderr)[-1] == "next: medlt validate labelled.parquet"
    done = CliRunner().invoke(app, ["validate", "labelled.parquet"])
    assert errors(done.stderr) == ["next: medlt init labelled.parquet"]
    settings = config.load_config(Path("dicom_folder/fusion"))
    assert config.load_config(Path("dicom_folder/quick")).data == settings.data
    found = open_data(settings.data, seed=0, folder=tmp_path)
    assert (len(found.rows), found.findings) == (len(made), ("Mass", "No_Finding"))
    assert config.load_verdict(Path("dicom_folder/verdict")).data == settings.data


@pytest.mark.slow
def test_the_demo_runs_where_a_package_named_pipelines_is(tmp_path: Path) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/__init__.py").write_text("raise SystemExit('the wrong package')\n")
    command = [sys.executable, "-m", "medlt", "demo", "-q", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=3600, env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"]["verdict"] in ("helps", "no evidence", "harms", "cannot see")
    assert (tmp_path / "demo/report.html").is_file()
