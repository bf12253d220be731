import errno
import os
import resource
from pathlib import Path

import pandas as pd
import pytest
import torch

from medlt import files
from medlt.types import InputError


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a.txt", "old")

    def interrupted() -> None:
        with files.atomic(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_tensors_come_back_equal(tmp_path: Path) -> None:
    tensors = {"a.b": torch.randn(3, 4), "n": torch.tensor(7)}
    files.write_tensors(tmp_path / "x.safetensors", tensors)
    back = files.read_tensors(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[k], tensors[k]) for k in tensors)


def test_tensors_without_room_are_an_error_of_the_system(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"x\.safetensors") as error:
            files.write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_a_digest_depends_on_every_part_and_not_the_order_of_keys() -> None:
    assert files.digest({"a": 1, "b": 2}) == files.digest({"b": 2, "a": 1})
    assert len({files.digest("ab", "c"), files.digest("a", "bc"), files.digest("abc"), files.digest(b"abc")}) == 4


def test_a_file_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    (tmp_path / "b").write_bytes(b"x" * 2_999_999 + b"y")
    assert files.digest_file(tmp_path / "a") != files.digest_file(tmp_path / "b")
    assert files.digest_file(tmp_path / "a") == files.digest_file(tmp_path / "a")


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_metadata_of_two_entries_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one"):
        files.write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {"a": "1", "b": "2"})


def test_a_table_comes_back_with_its_lists_and_whole_numbers(tmp_path: Path) -> None:
    rows = {
        "parents": [["Viral Pneumonia-1", "a,b"], []],
        "none": [[], []],
        "seed": pd.array([2**63 - 1, None], "Int64"),
    }
    table = pd.DataFrame(rows, index=pd.Index(["é", "b"], name="uid"))
    table.attrs = {"findings": ["A"]}
    files.write_table(tmp_path / "a.parquet", table)
    back = files.read_table(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(back, table)
    assert back.attrs == table.attrs
    files.write_table(tmp_path / "b.parquet", back)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_lock_that_is_held_is_refused_in_one_line_and_free_afterwards(tmp_path: Path) -> None:
    with files.locked(tmp_path / "run.lock", "the run"):
        with pytest.raises(InputError, match="the run: another process is working on it") as error:
            with files.locked(tmp_path / "run.lock", "the run", wait=False):
                pass
        assert "\n" not in str(error.value)
    with files.locked(tmp_path / "run.lock", "the run", wait=False):
        pass


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), files.locked(tmp_path / "file" / "a.lock", "it"):
        pass
