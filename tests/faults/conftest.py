"""The rig: a workplace in which every command has ended once, copies of it to strike, and what came of each strike."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reference" / "faults.md"
OUTCOMES = HERE / "outcomes.json"
"""What comes of every strike, as docs/reference/faults.md says."""
PLACE = {"output_dir": "run", "data": {"kind": "phantom", "patients": 24, "size": 64, "imbalance": 8}}
EXPERIMENT = {
    "output_dir": "experiment",
    "artifacts_dir": "run/artifacts",
    "data": {"kind": "manifest", "path": "run/stages/data/manifest.parquet"},
    "sources": {"noise": {"run": "run"}},
    "arms": {"noise": {"source": "noise"}},
    "evaluation": {"seeds": 2, "n_bootstrap": 100, "steps": 4, "synthetic_fraction": 0.2, "synthetic_weight": 0.3},
}
COMMANDS = {
    "convert": ("convert", "dicom", "converted", "--workers", "2"),
    "augment": ("augment", "run.yaml"),
    "train": ("train", "denoiser", "run.yaml", "--out", "trained"),
    "evaluate": ("evaluate", "experiment.yaml"),
    "audit": ("audit", "run", "--embedding-steps", "2", "--planted", "2"),
    "release": ("release", "run", "release"),
    "verify": ("release", "verify", "release"),
}
FOLDERS = {
    "convert": "converted", "augment": "run", "train": "trained", "evaluate": "experiment", "audit": "run",
    "release": "release", "verify": "release",
}  # fmt: skip
"""The folder that a command writes, below the workplace."""
CODES = {"audit": 1, "convert": 1}
"""Exit codes of a command that does its work, if not 0: an audit of few images concludes nothing; one file is torn."""
AFTER = {"evaluate": "augment", "audit": "augment", "release": "augment", "verify": "release"}
"""The command that another one needs."""
STRUCK = {
    "convert": ["converted"], "augment": ["run"], "train": ["trained"], "evaluate": ["experiment", "run"],
    "audit": ["run"], "release": ["run"], "verify": ["release"],
}  # fmt: skip
"""The folders whose files are struck: those that a command writes, and those that it reads."""
SPARED = re.compile(r"[^/]*/run\.log|.*\.lock|.*\.work/.*|.*/artifacts/pixels/.*|.*/samples/.*")
"""Files that no command reads again once it has ended; a damaged index of decoded files costs time alone."""
PUTS = ("open", "os.rename", "os.link")
"""The events that put a file into place."""
WORK = ".work/"
"""In the names of files that an artifact is made of, which a test of its own damages."""
SAME = "same bytes"
SHORT, WRITE = bool(os.environ.get("MEDLT_FAULTS_SHORT")), bool(os.environ.get("MEDLT_FAULTS_WRITE"))
UNEQUAL = re.compile(
    r"run\.log|(.*/)?[^/]*\.lock|artifacts/pixels/.*|\.convert/files\.jsonl|(.*/)?medlt-budget-book\.json|"
    r"(.*/)?\.[^/]*\.tmp\.?\w*|(.*/)?\w+\.(damaged-\d+|work|fresh)/.*|superseded/.*"
)
"""Files that equal runs need not have alike: the log, locks, the index of the decoded files, which holds their times,
the journal of a conversion, which has the order of its workers, the budget book, whose key is drawn at random, and what
a strike leaves under a name of its own."""
MEASURED = ("seconds", "peak_rss_mb", "training_of_arms", "previous_versions", "account", "checksum")
"""Sections of run.json that tell of one call: time, memory, what it trained itself and what it took from the store."""


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder that equal runs have alike, by name; run.json without what one call measured."""
    names = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {name: path.read_bytes() for name, path in names.items() if not UNEQUAL.fullmatch(name)}
    if "run.json" in files:
        record = json.loads(files["run.json"])
        files["run.json"] = json.dumps({key: record[key] for key in sorted(record) if key not in MEASURED}).encode()
    return files


@dataclass
class Striker:
    """The process that forks the commands."""

    process: subprocess.Popen[str]
    place: Path

    def __call__(self, command: str, strike: dict[str, Any] | None = None, *, at: Path, times: int = 1) -> list[Any]:
        """Run a command in the folder `at`, several times at once; return of each (code, output, changes)."""
        logs = [self.place / f"log-{number}" for number in range(times)]
        job = {"args": COMMANDS[command], "cwd": str(at), "root": str(at), "strike": strike}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([job | {"log": str(log)} for log in logs]) + "\n")
        self.process.stdin.flush()
        answers = json.loads(self.process.stdout.readline())
        return [(one["code"], log.read_text(), one["changes"]) for one, log in zip(answers, logs, strict=True)]


@pytest.fixture(scope="session")
def striker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Striker]:
    """A process that has imported medlt and forks a command in milliseconds."""
    pipe, script = subprocess.PIPE, str(HERE / "striker.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Striker(process, tmp_path_factory.mktemp("striker"))


@dataclass
class Rig:
    """Workplaces in which a command has just ended, the copy that is struck, and what came of every strike so far."""

    strike: Striker
    home: Path
    known: dict[str, dict[str, dict[str, str]]]
    outcomes: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    begun: dict[str, list[Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    short: bool = SHORT
    brief: bool = SHORT and not WRITE

    def only_in_full(self) -> None:
        """Skip a test in the short form."""
        if self.brief:
            pytest.skip("in the full form, `make faults`")

    def end(self) -> None:
        """Raise AssertionError with the problems since the last call."""
        problems, self.problems = self.problems, []
        if WRITE:
            known = json.loads(OUTCOMES.read_text())
            for command, files in self.outcomes.items():
                struck = {(WORK in what, fault) for what, cells in files.items() for fault in cells}
                for what, cells in known.get(command, {}).items():
                    for fault in {fault for work, fault in struck if work == (WORK in what)}:
                        cells.pop(fault, None)
                for what, faults in files.items():
                    known.setdefault(command, {}).setdefault(what, {}).update(faults)
                known[command] = {what: cells for what, cells in known[command].items() if cells}
            OUTCOMES.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
            before, _, rest = PAGE.read_text().partition(BEGIN)
            PAGE.write_text(before + BEGIN + tables(known) + END + rest.partition(END)[2])
        assert not problems, "\n".join(problems)

    @property
    def place(self) -> Path:
        """Where every command is struck; the same place, since a run knows its files by their paths."""
        return self.home / "place"

    def before(self, command: str) -> Path:
        """The workplace as the command meets it: with its configs and files alone, or after the command it needs."""
        if command in AFTER:
            return self.clean(AFTER[command])
        if not (folder := self.home / "prepared").exists():
            prepare(folder, self.settings)
        return folder

    def clean(self, command: str) -> Path:
        """The workplace as the command left it, made once."""
        folder = self.home / "clean" / command
        if not folder.exists():
            place = self.begin(command)
            [(code, said, changes)] = self.strike(command, at=place)
            assert code == CODES.get(command, 0), said
            self.begun[command] = changes
            shutil.copytree(place, folder)
        return folder

    def fresh(self, command: str) -> Path:
        """A new copy of the workplace in which the command has ended; a release, which is made once, is not there."""
        return self.begin(command) if command == "release" else self.copied(self.clean(command))

    def begin(self, command: str) -> Path:
        """A new copy of the workplace in which the command has not begun."""
        return self.copied(self.before(command))

    def copied(self, folder: Path) -> Path:
        """The place, with a copy of this folder in it."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(folder, self.place)
        return self.place

    def files(self, command: str) -> dict[str, str]:
        """One file of each kind that the command wrote or read: label -> name below the workplace."""
        found: dict[str, str] = {}
        for folder in STRUCK[command]:
            found |= self.kinds(self.clean(command), f"{folder}/**/*")
        return {what: name for what, name in found.items() if not SPARED.fullmatch(name)}

    @staticmethod
    def kinds(place: Path, names: str) -> dict[str, str]:
        """One file of each kind, the first of these names below a workplace: label -> name."""
        files = sorted(path.relative_to(place).as_posix() for path in place.glob(names) if path.is_file())
        return {label(name): name for name in reversed(files)}

    def written(self, command: str) -> set[str]:
        """The kinds of files that the command makes or changes."""
        before, after = (everything(folder) for folder in (self.before(command), self.clean(command)))
        return {label(name) for name, data in after.items() if before.get(name) != data}

    def moments(self, command: str) -> dict[str, list[dict[str, str]]]:
        """For each kind of file, in order, its first change and the one that puts it into place, as parts of a strike.

        The change that puts a file into place is its rename, its link, or its opening. What the command writes for a
        while only, as in the work folder of an artifact, is among them, and artifacts as whole folders.
        """
        self.clean(command)
        kinds: dict[str, dict[tuple[str, str], None]] = {}
        for event, name in self.begun[command]:
            mask = pattern(name)
            kinds.setdefault(final(mask), {})[(event, mask)] = None
        moments = {}
        for what, events in kinds.items():
            puts = [one for one in events if one[0] in PUTS]
            if puts and not what.endswith(".lock"):
                moments[what] = [{"event": e, "name": regular(mask)} for e, mask in (next(iter(events)), puts[-1])]
        return moments

    def opened(self, command: str) -> list[str]:
        """The kinds of files that the command writes under their own names, neither renamed nor in a folder that is."""
        direct = {"event": "open"}
        moments = self.moments(command).items()
        return [what for what, (_, put) in moments if put == direct | {"name": regular(what)} and WORK not in what]

    @staticmethod
    def code(command: str) -> int:
        """The exit code of a command that does its work."""
        return CODES.get(command, 0)

    def may_be_same(self, command: str, fault: str, what: str) -> bool:
        """Whether this strike changes nothing as far as the table knows, which may know of a flipped bit alone."""
        cells = {**self.known.get(command, {}).get(what, {}), **self.outcomes.get(command, {}).get(what, {})}
        return cells.get(fault, cells.get("flip", SAME)) == SAME

    def again(self, command: str, fault: str, *what: str) -> str:
        """Run the command; note what comes of it: the same bytes, or one line."""
        [(code, said, _)] = self.strike(command, at=self.place)
        return self.note(command, fault, what, code, said)

    def note(self, command: str, fault: str, what: Sequence[str], code: int, said: str) -> str:
        """Note what came of a strike, and a problem if it is neither the same bytes nor one line.

        The short form compares exit codes with those of the page, the full one the lines as well.
        """
        outcome, problem = self.judge(command, code, said, what)
        for one in what:
            self.outcomes.setdefault(command, {}).setdefault(one, {})[fault] = outcome
            wanted = self.known.get(command, {}).get(one, {}).get(fault)
            alike = wanted is not None and outcome.partition(":")[0] == wanted.partition(":")[0]
            if not problem and not WRITE and outcome != wanted and not (SHORT and alike):
                problem = f"{outcome!r}, and docs/reference/faults.md says {wanted!r}; `make faults WRITE=1` writes it"
        if problem:
            self.problems.append(f"{command}, {', '.join(what)}, {fault}: {problem}")
        return outcome

    def judge(self, command: str, code: int, said: str, what: Sequence[str]) -> tuple[str, str]:
        """What the table says of an end, and what is wrong with it. A struck file that is only read stays as it is."""
        said = said.replace(f"{self.place}/", "")
        if "Traceback" in said or code not in (0, 1, 2):
            return "broken", f"exit code {code}: {said[-1500:]}"
        if code == CODES.get(command, 0):
            folder, only_read = FOLDERS[command], {*what} - self.written(command)
            names = differences(self.clean(command) / folder, self.place / folder)
            differ = [name for name in names if label(f"{folder}/{name}") not in only_read]
            return (SAME, "") if not differ else ("other bytes", f"other bytes: {differ}")
        lines = [line.removeprefix("medlt: ") for line in said.splitlines() if re.match(r"medlt: (?!warning)", line)]
        if command == "verify" and code == 1:
            lines = ["; ".join(said.splitlines()[1:-1])]
        if len(lines) != 1 or len(lines[0]) > 600:
            return "many lines", f"exit code {code}: {said[-1500:]}"
        line = re.sub(r"(?<=\.)\d+(?=\.tmp)", "PID", lines[0])
        line = re.sub(r"[\w-]+_\d{5}_\d_[0-9a-f]{6}\.png|\b[0-9a-f]{24}\.png", "*.png", line)
        return f"{code}: {re.sub(r'[0-9a-f]{16}', 'DIGEST', line)}", ""


def label(name: str) -> str:
    """The kind of a file: its name without the digest of an artifact, its subfolder, or the uid of an image."""
    name = re.sub(r"(/[0-9a-f]{1,3})*/(\.?)[0-9a-f]{16}(?=[./]|$)", r"/\2*", name)
    return re.sub(r"(masks|images|dicom|samples)/(.*/)?[^/]*\.(png|dcm)$", r"\1/*.\3", name)


def pattern(name: str) -> str:
    """The kind of a name, which may be temporary, without the process that writes it."""
    return re.sub(rf"(\.{re.escape(platform.node())})?\.\d+\.tmp\b", ".*.tmp", label(name))


def regular(mask: str) -> str:
    """The regular expression of the names of this kind; images and artifacts of a kind may be in subfolders."""
    return re.escape(mask).replace(r"/\*\.", r"/.*\.").replace(r"\*", "(?:[0-9a-f]{1,3}/)*[^/]*")


def final(mask: str) -> str:
    """The kind of the file that a temporary one becomes."""
    mask = re.sub(r"(^|/)\.([^/]+)\.\*\.tmp(\.[^/]*)?(?=/|$)", r"\1\2", mask)
    return label(re.sub(r"\*\.fresh(?=/|$)", "*", mask))


def everything(folder: Path) -> dict[str, bytes]:
    """The bytes of all files of a folder, by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def differences(whole: Path, other: Path) -> list[str]:
    """The names of files that differ between two folders, or are in one alone."""
    a, b = content(whole), content(other)
    return [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]


@pytest.fixture(scope="session")
def rig(striker: Striker, tmp_path_factory: pytest.TempPathFactory, tiny_settings: dict[str, Any]) -> Rig:
    """What strikes commands; a command is run before it is struck for the first time."""
    known = json.loads(OUTCOMES.read_text()) if OUTCOMES.exists() else {}
    return Rig(striker, tmp_path_factory.mktemp("faults"), known, settings=tiny_settings)


def prepare(place: Path, settings: dict[str, Any]) -> None:
    """Write the configs, and a folder of DICOM files of which two are equal and one is torn."""
    from medlt.data.phantom.write import write_phantom

    (place / "dicom").mkdir(parents=True)
    common = {name: settings[name] for name in ("seed", "threads", "targets", "classifier")}
    (place / "run.yaml").write_text(yaml.safe_dump(settings | PLACE))
    (place / "experiment.yaml").write_text(yaml.safe_dump(common | EXPERIMENT))
    write_phantom(place.with_name("phantom"), patients=20, seed=1, size=64)
    films = sorted(place.with_name("phantom").rglob("*.dcm"))[:4]
    for number, film in enumerate((films[0], *films)):
        shutil.copy(film, place / "dicom" / f"{number}.dcm")
    (place / "dicom" / "torn.dcm").write_bytes(films[1].read_bytes()[:3000])


COLUMNS = ("flip", "cut", "remove", "kill", "full")
OTHERS = {
    "limit": "the system refuses to write longer files",
    "race": "two processes at once in one folder",
    "move": "the folder is renamed, and the command run there again",
    "swap": "two inputs change places",
    "versions": "the folder was made by another version",
}
BEGIN, END = "<!-- faults: written by `make faults WRITE=1` -->\n", "<!-- end of faults -->"


def tables(outcomes: dict[str, dict[str, dict[str, str]]]) -> str:
    """The tables of docs/reference/faults.md: for each command its files, then the other faults."""
    parts = []
    for command in (name for name in COMMANDS if name in outcomes):
        lines: dict[str, int] = {}
        rows = [f"### {command}", "", f"`medlt {' '.join(COMMANDS[command])}`", ""]
        files = {what: cells for what, cells in sorted(outcomes[command].items()) if set(cells) & set(COLUMNS)}
        rows += ["| file | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
        for what, cells in files.items():
            rows.append(f"| `{what}` | " + " | ".join(cell(cells.get(name), lines) for name in COLUMNS) + " |")
        rows += ["", "| fault | | what comes of it |", "|---|---|---|"]
        for fault, said in OTHERS.items():
            for what, cells in sorted(outcomes[command].items()):
                if fault in cells:
                    rows.append(f"| {said} | {what} | {cell(cells[fault], lines)} |")
        rows += ["", *(f"- [{number}] exit code {line.replace(': ', ': `', 1)}`" for line, number in lines.items()), ""]
        parts.append("\n".join(rows))
    return "\n".join(parts)


def cell(outcome: str | None, lines: dict[str, int]) -> str:
    """What a cell shows: a dash, the same bytes, or the number of the line below the table."""
    if outcome is None:
        return "–"
    return outcome if outcome == SAME else f"[{lines.setdefault(outcome, len(lines) + 1)}]"


@pytest.fixture(scope="session")
def page() -> tuple[str, str]:
    """What docs/reference/faults.md holds between its marks, and what it should hold."""
    text = PAGE.read_text()
    return text.partition(BEGIN)[2].partition(END)[0], tables(json.loads(OUTCOMES.read_text()))
