"""Results of a check: copies of real images are named, and files of others are not overwritten."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from medlt.checks.outcome import CheckSummary, not_measured, outcome, read_check
from medlt.checks.real_copy import real_copies
from medlt.rng import torch_generator
from medlt.types import CheckResult, InputError


def named(images: Tensor, prefix: str) -> tuple[list[str], Callable[[Sequence[str]], Tensor]]:
    uids = [f"{prefix}{i}" for i in range(len(images))]
    return uids, lambda chosen: images[[uids.index(uid) for uid in chosen]]


@pytest.mark.parametrize("chunk", [1, 3, 256])
def test_copies_and_mirrored_copies_of_real_images_are_named(chunk: int) -> None:
    real = torch.rand(7, 1, 8, 8, generator=torch_generator("real"))
    made = torch.rand(5, 1, 8, 8, generator=torch_generator("made"))
    made[1], made[4] = real[6], real[2].flip(-1) * 0.5 + 0.1  # a copy of other contrast
    done = real_copies(*named(made, "s"), *named(real, "r"), chunk=chunk)
    assert [result.uid for result in done] == ["s0", "s1", "s2", "s3", "s4"]
    failed = {result.uid: result.reason for result in done if not result.passed}
    assert failed == {"s1": "a copy of the real image r6", "s4": "a copy of the real image r2"}
    alone = real_copies(*named(made, "s"), *named(real[:0], "r"))
    assert {result.value for result in alone} == {-1.0}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rows = [("Mass", CheckResult("copy", "a", 1.0, 0.9, False, "why")), ("", CheckResult("copy", "b", 0.1, 0.9, True))]
    done = CheckSummary(2, (outcome("copy", rows, "none", "{failed} of {images}"), not_measured("x", "no reason")))
    done.write(tmp_path)
    read = read_check(tmp_path)
    assert read is not None
    assert read.record() == done.record()
    assert read.failed
    assert [one.conclusion for one in read.outcomes] == ["1 of 2", "not measured: no reason"]
    table = pd.read_parquet(tmp_path / "check.parquet")
    assert table[["check", "uid", "finding", "passed"]].to_numpy().tolist() == [
        ["copy", "a", "Mass", False], ["copy", "b", "", True]
    ]  # fmt: skip
    done.write(tmp_path)  # its own files are replaced


OTHERS = '{"written_by": "mine", "images": 0, "checks": []}'


@pytest.mark.parametrize(
    ("name", "content"),
    [("check.json", OTHERS), ("check.json", "{}"), ("check.json", "[1"), ("check.parquet", "mine")],
)
def test_files_of_others_are_not_overwritten(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert not CheckSummary(0, ()).failed
    with pytest.raises(InputError, match=r"was not written by medlt check; move it away, or give --out"):
        CheckSummary(0, ()).write(tmp_path)
    assert (tmp_path / name).read_text() == content
