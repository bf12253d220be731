"""The CXR-LT challenges, in exactly their folders, file names and columns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medlt.data.layouts.cxr_lt import FINDINGS_2023, FINDINGS_2024
from medlt.types import InputError

NEW = ("Bulla", "Cardiomyopathy", "Hilum", "Osteopenia", "Scoliosis")
TASKS = {
    "1": tuple(f for f in FINDINGS_2024 if f not in NEW),
    "2": tuple("Normal" if f == "No Finding" else f for f in FINDINGS_2023),
    "3": NEW,
}
DICOMS = [f"{i:08x}-aaaaaaaa-bbbbbbbb-cccccccc-dddddddd" for i in range(6)]
PARTS = {"train": [0, 1, 2], "development": [3], "test": [4, 5]}


def place(i: int) -> str:
    return f"files/p1{i % 3}/p1{i % 3}00000{i}/s5000000{i}/{DICOMS[i]}.jpg"


def table(ids: list[int], findings: tuple[str, ...], path: str = "fpath", **more: Any) -> dict[str, Any]:
    return {
        "dicom_id": [DICOMS[i] for i in ids],
        "subject_id": [f"1{i % 3}00000{i}" for i in ids],
        "study_id": [f"s5000000{i}" for i in ids],
        "ViewPosition": ["PA" if i % 2 else None for i in ids],
        "ViewCodeSequence_CodeMeaning": ["postero-anterior"] * len(ids),
        path: [place(i) for i in ids],
        **{f: [int(i % len(findings) == k) for i in ids] for k, f in enumerate(findings)},
        **more,
    }


def year_2023(put: Callable[..., Path], folder: str = "cxr-lt-2023/", path: str = "fpath") -> None:
    for part, ids in PARTS.items():
        put(f"{folder}{part}.csv", **table(ids, FINDINGS_2023, path))


def year_2024(put: Callable[..., Path]) -> None:
    split = [part for part, ids in PARTS.items() for _ in ids]
    put("cxr-lt-2024/labels.csv", **table(list(range(6)), FINDINGS_2024, split=split))
    put("cxr-lt-2024/train_labeled.csv", **table(PARTS["train"], TASKS["1"]))
    for task, findings in TASKS.items():
        for part in ("development", "test"):
            put(f"cxr-lt-2024/{part}_labeled_task{task}.csv", **table(PARTS[part], findings))
            put(f"cxr-lt-2024/{part}_task{task}.csv", **table(PARTS[part], ()))


def test_the_numbers_of_findings_are_the_published_ones() -> None:
    assert len(FINDINGS_2023) == len(TASKS["2"]) == 26
    assert len(FINDINGS_2024) == 45
    assert len(TASKS["1"]) == 40


@pytest.mark.parametrize("folder", ["cxr-lt-2023/", ""])
@pytest.mark.parametrize("path", ["fpath", "path"])
def test_2023(touch: Any, put: Any, read: Any, positives: Any, folder: str, path: str) -> None:
    year_2023(put, folder, path)
    result = read("cxr-lt", touch(place(i) for i in range(6)))
    rows = result.manifest.rows
    assert result.manifest.findings == FINDINGS_2023
    assert list(rows["split"]) == ["train"] * 3 + ["val"] + ["test"] * 2
    assert rows["view"].isna().tolist() == [True, False] * 3
    assert list(rows["study_id"]) == [f"5000000{i}" for i in range(6)]
    assert list(positives(result).values()) == [{FINDINGS_2023[i]} for i in range(6)]
    assert not len(result.orphans)
    result.manifest.check_files()


@pytest.mark.parametrize("task", ["all", "1", "2", "3"])
def test_2024_by_task(touch: Any, put: Any, read: Any, task: str) -> None:
    year_2024(put)
    result = read("cxr-lt", touch(place(i) for i in range(6)), task=task, all_zero="keep")
    wanted = set(TASKS.get(task, FINDINGS_2024))
    assert set(result.manifest.findings) == wanted
    assert list(result.manifest.rows["split"]) == ["train"] * 3 + ["val"] + ["test"] * 2
    assert not result.manifest.rows[list(wanted)].isna().any().any()
    assert result.summary()["labels"]["source"] == f"CXR-LT 2024, task {task}"


def test_both_years_need_a_choice_and_train_alone_is_not_confused(touch: Any, put: Any, read: Any) -> None:
    year_2023(put)
    year_2024(put)
    src = touch(place(i) for i in range(6))
    with pytest.raises(InputError, match="the tables of 2023 and 2024; choose one with --release"):
        read("cxr-lt", src)
    assert read("cxr-lt", src, release="2023").manifest.findings == FINDINGS_2023
    assert set(read("cxr-lt", src, release="2024").manifest.findings) == set(FINDINGS_2024)


def test_a_stray_test_csv_beside_the_release_is_not_taken(touch: Any, put: Any, read: Any) -> None:
    year_2023(put)
    put("a/test.csv", image=["x"], score=[0.5])
    assert read("cxr-lt", touch(place(i) for i in range(6))).manifest.findings == FINDINGS_2023


def test_rows_of_zeros_need_a_choice_and_normal_is_no_finding(touch: Any, put: Any, read: Any) -> None:
    year_2024(put)
    columns = table(PARTS["test"], TASKS["1"])
    put("cxr-lt-2024/test_labeled_task1.csv", **columns | {f: [0, 0] for f in TASKS["1"]})
    src = touch(place(i) for i in range(6))
    with pytest.raises(InputError, match="2 of 6 rows have every finding at 0"):
        read("cxr-lt", src, task="1")
    rows = read("cxr-lt", src, task="1", all_zero="no-finding").manifest.rows
    assert list(rows["Normal"].iloc[4:]) == [1, 1]
    assert len(read("cxr-lt", src, task="1", all_zero="drop").manifest.rows) == 4
    assert rows["Normal"].iloc[:4].sum() == 0


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda put: None, {}, "holds no CXR-LT table; check SRC"),
        (
            lambda put: put("a/labelled.csv", x=[1]),
            {},
            "no CXR-LT table; seen and not understood: a/labelled.csv; check",
        ),
        (lambda put: put("cxr-lt-2023/train.csv", **table([0], ())), {}, r"train\.csv: holds no labels"),
        (
            lambda put: put("cxr-lt-2024/train_labeled.csv", **table([0], TASKS["1"])),
            {},
            "no labels.csv of CXR-LT 2024",
        ),
        (lambda put: year_2023(put), {"task": "4"}, "--task: '4' is not valid; use all, 1, 2, 3"),
    ],
)
def test_what_is_refused(touch: Any, put: Any, read: Any, spoil: Any, options: dict[str, str], message: str) -> None:
    spoil(put)
    with pytest.raises(InputError, match=message):
        read("cxr-lt", touch(place(i) for i in range(6)), **options)
