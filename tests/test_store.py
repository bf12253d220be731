"""The artifact store: keyed by contents, complete or absent, verified when opened, built once."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medlt import store as module
from medlt.folders import GROWING, digits_for
from medlt.store import RECORD, Store
from medlt.training.settings import Training
from medlt.types import InputError

KEY = {"pixels": "0123", "steps": 3}


class Builder:
    """Writes two files, one in a folder; counts its calls."""

    def __init__(self, text: str = "weights") -> None:
        self.text, self.calls = text, 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "weights.bin").write_bytes(self.text.encode() * 1000)
        (folder / "deep" / "about.json").write_text("{}")


def test_it_is_built_once_and_opened_by_another_process_object(tmp_path: Path) -> None:
    build = Builder()
    made = Store(tmp_path).make("codec", KEY, build)
    again = Store(tmp_path).make("codec", KEY, build)
    assert (build.calls, again) == (1, made)
    assert Store(tmp_path).find("codec", dict(reversed(KEY.items()))) == made
    assert Store(tmp_path).find("codec", KEY | {"steps": 4}) is None
    assert Store(tmp_path).find("denoiser", KEY) is None
    assert Store(tmp_path).folders("codec") == [made.folder]
    assert made.path("weights.bin").read_bytes() == b"weights" * 1000
    assert not made.folder.with_suffix(".work").exists()
    assert not made.folder.with_suffix(".fresh").exists()


@pytest.mark.parametrize("kind", ["shards", "images-32"])
def test_kinds_that_grow_with_the_images_are_in_subfolders(tmp_path: Path, kind: str) -> None:
    """No folder holds more than a limit that needs as many digits for these few files as 10,000 for a million."""
    limit, store = 8, Store(tmp_path)
    made = {n: store.make(kind, {"n": n}, Builder(str(n))) for n in range(100)}
    files = [path for path in (tmp_path / kind).glob("*/*") if path.is_file()]
    assert digits_for(len(files), limit) == GROWING == digits_for(1_000_000)
    inside = Counter(path.parent for path in files)
    assert max(inside.values()) <= limit
    assert not [path for path in (tmp_path / kind).iterdir() if len(path.name) != GROWING]
    again = Store(tmp_path)
    assert again.folders(kind) == sorted(artifact.folder for artifact in made.values())
    assert [again.find(kind, {"n": n}) for n in made] == list(made.values())
    assert again.examine(kind, made[7].digest) == made[7]
    (made[7].folder / "weights.bin").unlink()
    assert again.find(kind, {"n": 7}) is None
    assert made[7].folder.with_suffix(".damaged-1").is_dir()
    assert len(Store(tmp_path).folders(kind)) == 99


def test_contents_name_the_bytes_whatever_the_key(tmp_path: Path) -> None:
    store = Store(tmp_path)
    a, b = (store.make("codec", {"seed": seed}, Builder()) for seed in (1, 2))
    c = store.make("codec", {"seed": 3}, Builder("other"))
    assert a.folder != b.folder
    assert a.contents == b.contents != c.contents


def test_hidden_files_and_checkpoints_are_no_part_of_it(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        Builder()(folder)
        (folder / ".torn.12.tmp").write_text("half")
        (folder / "checkpoint").mkdir()
        (folder / "checkpoint" / "state.bin").write_text("state")

    made = Store(tmp_path).make("codec", KEY, build)
    names = {path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*") if path.is_file()}
    assert names == {"weights.bin", "deep/about.json", RECORD}


def test_versions_are_recorded(tmp_path: Path) -> None:
    made = Store(tmp_path).make("codec", KEY, Builder())
    assert made.versions["torch"] == torch.__version__.split("+")[0] or made.versions["torch"] == torch.__version__
    assert json.loads((made.folder / RECORD).read_text())["key"] == KEY


def test_other_versions_are_warned_of_once_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    store = Store(tmp_path)
    finished = {"seed": 1}
    with monkeypatch.context() as older:
        older.setattr(module, "versions", lambda: {"torch": "1.0"})
        store.make("codec", finished, Builder())
        with pytest.raises(KeyboardInterrupt):
            store.make("codec", KEY, killed)
        assert not caplog.messages
    monkeypatch.setattr(module, "versions", lambda: {"torch": "2.0"})
    for _ in range(2):
        artifact = store.make("codec", finished, Builder())
    assert artifact.versions == {"torch": "1.0"}
    assert ["torch 1.0 (now 2.0)" in text for text in caplog.messages] == [True]
    resumed = Store(tmp_path).make("codec", KEY, Builder())
    record = json.loads((resumed.folder / RECORD).read_text())
    assert (record["begun"], record["versions"]) == ({"torch": "1.0"}, {"torch": "2.0"})
    assert "was begun with other versions" in caplog.messages[-1]


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "flipped": flip,
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: os.truncate(file, 0),
    "missing": lambda file: file.unlink(),
}


@pytest.mark.parametrize("name", ["weights.bin", "deep/about.json", RECORD])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_set_aside_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str, name: str
) -> None:
    build = Builder()
    made = Store(tmp_path).make("codec", KEY, build)
    DAMAGES[damage](made.path(name))
    again = Store(tmp_path).make("codec", KEY, build)
    assert (build.calls, again) == (2, made)
    assert again.path("weights.bin").read_bytes() == b"weights" * 1000
    (message,) = caplog.messages
    assert f"{name} is damaged; it was moved to {made.digest}.damaged-1" in message
    assert (tmp_path / "codec" / f"{made.digest}.damaged-1").is_dir()
    assert Store(tmp_path).folders("codec") == [made.folder]


def test_a_second_damage_takes_the_next_number(tmp_path: Path) -> None:
    for _ in range(3):
        flip(Store(tmp_path).make("codec", KEY, Builder()).path("weights.bin"))
    Store(tmp_path).make("codec", KEY, Builder())
    assert sorted(path.suffix for path in (tmp_path / "codec").glob("*.damaged-*")) == [
        ".damaged-1",
        ".damaged-2",
        ".damaged-3",
    ]


def test_damage_after_the_first_check_is_detected_although_length_and_time_are_the_same(tmp_path: Path) -> None:
    store, build = Store(tmp_path), Builder()
    file = store.make("codec", KEY, build).path("weights.bin")
    status = file.stat()
    flip(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert store.find("codec", KEY) is None


@pytest.mark.parametrize("at", range(0, 400, 13))
def test_any_byte_of_the_record_counts(tmp_path: Path, at: int) -> None:
    made = Store(tmp_path).make("codec", KEY, Builder())
    data = bytearray((made.folder / RECORD).read_bytes())
    data[at % len(data)] ^= 1
    (made.folder / RECORD).write_bytes(bytes(data))
    artifact = Store(tmp_path).find("codec", KEY)
    assert artifact is None or artifact == made  # a byte between two entries need not matter


def test_an_artifact_of_another_key_or_kind_is_not_taken_by_its_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    store.make("codec", KEY, Builder()).folder.rename(store.place("codec", {"seed": 2}))
    assert store.find("codec", {"seed": 2}) is None
    other = store.make("codec", KEY, Builder())
    (tmp_path / "denoiser").mkdir()
    other.folder.rename(store.place("denoiser", KEY))
    assert store.find("denoiser", KEY) is None
    assert all(RECORD in text for text in caplog.messages)


def test_a_root_behind_a_link_and_a_relative_one_are_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    build = Builder()
    made = Store(tmp_path / "link").make("codec", KEY, build)
    monkeypatch.chdir(tmp_path)
    relative = Store(Path("there"))
    monkeypatch.chdir("/")
    assert relative.make("codec", KEY, build).contents == made.contents
    assert build.calls == 1


def test_a_failed_build_leaves_no_artifact_and_the_next_goes_on_in_its_folder(tmp_path: Path) -> None:
    seen: list[bool] = []

    def build(folder: Path) -> None:
        seen.append((folder / "checkpoint" / "step").exists())
        (folder / "checkpoint").mkdir(exist_ok=True)
        (folder / "checkpoint" / "step").write_text("7")
        if len(seen) == 1:
            raise RuntimeError("power")
        Builder()(folder)

    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="power"):
        store.make("codec", KEY, build)
    assert store.find("codec", KEY) is None
    store.make("codec", KEY, build)
    assert seen == [False, True]


def test_work_left_by_a_kill_after_publishing_goes_and_is_not_built_again(tmp_path: Path) -> None:
    build = Builder()
    made = Store(tmp_path).make("codec", KEY, build)
    left = made.folder.with_suffix(".work")
    left.mkdir()
    (left / "weights.bin").write_bytes(b"half")
    assert Store(tmp_path).make("codec", KEY, build) == made
    assert (build.calls, left.exists()) == (1, False)


def test_work_of_an_artifact_that_is_moved_away_meanwhile_stays(tmp_path: Path) -> None:
    """It is the work of another process, which found the artifact damaged and builds it again."""
    place = Store(tmp_path).make("codec", KEY, Builder()).folder
    place.with_suffix(".work").mkdir()
    place.rename(place.with_suffix(".damaged-1"))
    module._remove_leftover_work("codec", place)
    assert place.with_suffix(".work").is_dir()


def test_a_shared_work_folder_stays_and_artifacts_do_not_change_with_it(tmp_path: Path) -> None:
    def grow(folder: Path) -> None:
        with (folder / "weights.bin").open("ab") as handle:
            handle.write(b"x")

    store = Store(tmp_path)
    made = [store.make("codec", {"steps": n}, grow, work={"family": 1}) for n in range(3)]
    assert [a.path("weights.bin").stat().st_size for a in made] == [1, 2, 3]
    assert [Store(tmp_path).open("codec", a.folder) for a in made] == made


def full(number: int) -> Callable[..., None]:
    def write(*_: object) -> None:
        raise OSError(number, os.strerror(number), "weights.bin")

    return write


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_no_room_while_building_is_one_line_and_leaves_what_was_there(tmp_path: Path, number: int) -> None:
    store = Store(tmp_path)
    old = store.make("codec", {"seed": 1}, Builder())
    with pytest.raises(InputError, match=f"{os.strerror(number)}; free space") as error:
        store.make("codec", KEY, full(number))
    assert "\n" not in str(error.value)
    assert store.find("codec", KEY) is None
    assert Store(tmp_path).find("codec", {"seed": 1}) == old


def test_no_room_while_publishing_leaves_the_work_for_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, build = Store(tmp_path), Builder()
    with monkeypatch.context() as patched:
        patched.setattr(module, "write_json", lambda path, value: full(errno.ENOSPC)() if path.name == RECORD else None)
        with pytest.raises(InputError, match="No space left"):
            store.make("codec", KEY, build)
    place = store.place("codec", KEY)
    assert not place.exists()
    assert not place.with_suffix(".fresh").exists()
    assert (place.with_suffix(".work") / "weights.bin").exists()
    assert store.make("codec", KEY, build).path("weights.bin").read_bytes() == b"weights" * 1000


def test_a_store_that_cannot_be_written_still_gives_what_it_holds(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may write anywhere")
    made = Store(tmp_path / "s").make("codec", KEY, Builder())
    made.folder.with_suffix(".lock").unlink()
    os.chmod(made.folder.parent, 0o555)
    try:
        assert Store(tmp_path / "s").make("codec", KEY, Builder()) == made
        with pytest.raises(InputError, match=r"cannot be written|Permission"):
            Store(tmp_path / "s").make("codec", {"seed": 9}, Builder())
    finally:
        os.chmod(made.folder.parent, 0o755)


PROGRAM = """
import sys, time
from pathlib import Path
from medlt.store import Store

def build(folder):
    with (Path(sys.argv[1]) / "calls").open("a") as handle:
        handle.write("x")
    begun = folder / "checkpoint"
    steps = len(list(begun.glob("*"))) if begun.exists() else 0
    begun.mkdir(exist_ok=True)
    for step in range(steps, 6):
        time.sleep(float(sys.argv[2]))
        (begun / str(step)).write_text("")
        print("step", step, flush=True)
    (folder / "weights.bin").write_text("done " + str(steps))

made = Store(Path(sys.argv[1]) / "store").make("codec", {"a": 1}, build)
print("read", made.path("weights.bin").read_text(), flush=True)
"""


def start(place: Path, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(place), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_that_race_for_one_key_build_once_and_all_get_it(tmp_path: Path) -> None:
    racing = [start(tmp_path, 0.05) for _ in range(3)]
    last = [process.communicate(timeout=120)[0].splitlines()[-1] for process in racing]
    assert last == ["read done 0"] * 3
    assert (tmp_path / "calls").read_text() == "x"


def test_after_kill_9_the_next_process_goes_on_in_the_work_folder(tmp_path: Path) -> None:
    killed = start(tmp_path, 0.2)
    assert killed.stdout is not None
    while killed.stdout.readline() != "step 2\n":
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert Store(tmp_path / "store").find("codec", {"a": 1}) is None
    last = start(tmp_path, 0.0).communicate(timeout=120)[0].splitlines()[-1]
    assert last == "read done 3"
    assert (tmp_path / "calls").read_text() == "xx"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-2, 2) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(
    a=st.dictionaries(st.text(max_size=3), JSON, max_size=3), b=st.dictionaries(st.text(max_size=3), JSON, max_size=3)
)
def test_keys_have_one_place_exactly_where_json_is_the_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    store = Store(Path("/nowhere"))
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (store.place("k", a) == store.place("k", b)) == same
    assert store.place("k", a) == store.place("k", json.loads(json.dumps(a)))


def test_a_key_holds_plain_values_and_all_of_them_count() -> None:
    store = Store(Path("/nowhere"))
    assert store.place("k", {"n": np.int64(3)}) == store.place("k", {"n": 3})
    assert store.place("k", {"clip": float("inf")}) != store.place("k", {"clip": 1.0})
    assert store.place("k", {"t": Training(steps=2)}) != store.place("k", {"t": Training(steps=3)})
    for bad in (torch.zeros(2), np.zeros(3), Path("/a"), torch.float32, {1, 2}, object()):
        with pytest.raises(TypeError, match="put a digest of its contents"):
            store.place("k", {"x": [bad]})


def test_unchanged_files_are_hashed_once_and_changed_ones_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    whole = module.digest_file
    monkeypatch.setattr(module, "digest_file", lambda file: hashed.append(file.name) or whole(file))
    one = Store(tmp_path)
    made = one.make("kind", {"a": 1}, lambda folder: [(folder / name).write_text(name) for name in "xy"])
    before = len(hashed)
    assert one.find("kind", {"a": 1}) == made
    assert len(hashed) == before
    os.utime(made.path("x"), ns=(1, 1))
    assert one.find("kind", {"a": 1}) == made
    assert sorted(hashed[before:]) == ["x", "y"]
    made.path("y").unlink()
    assert one.find("kind", {"a": 1}) is None
