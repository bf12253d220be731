"""What answers show, against counts by hand."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medlt.review.answers import ReaderAnswer, as_csv
from medlt.review.results import read_readings, results, review_results
from medlt.types import InputError

ROWS = pd.DataFrame(
    {"Mass": [1.0, 0.0, 0.7, np.nan], "synthetic": [False, False, True, True]}, pd.Index(["r1", "r2", "s1", "s2"])
)


def write(folder: Path, reader: str, *answers: tuple[str, str, str, str]) -> None:
    (folder / "review").mkdir(exist_ok=True)
    rows = [ReaderAnswer(0, uid, "Mass", origin, plausible, presence) for uid, origin, plausible, presence in answers]
    (folder / "review" / f"{reader}.csv").write_bytes(as_csv(rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "anna", ("r1", "real", "plausible", "present"), ("r2", "synthetic", "plausible", "present"),
          ("s1", "real", "implausible", "absent"), ("s2", "synthetic", "plausible", "present"))  # fmt: skip
    write(tmp_path, "ben", ("r1", "real", "", "unsure"), ("r2", "real", "", "absent"), ("s1", "real", "", "present"))
    return tmp_path


def test_rates_are_counts(folder: Path) -> None:
    read = results(read_readings(folder), ROWS)
    assert read.readings == {"anna": 4, "ben": 3}

    def counted(question: str, **which: str) -> tuple[int, int]:
        row = read.rate(question, **which)
        assert row is not None
        return int(row["count"]), int(row["of"])

    assert counted("origin") == (4, 7)  # anna r1, s2; ben r1, r2
    assert counted("origin", kind="synthetic") == (1, 3)
    assert counted("origin", reader="ben") == (2, 3)
    assert counted("plausibility", kind="synthetic") == (1, 2)
    assert counted("presence") == (3, 5)  # s2 has no label, ben is unsure of r1
    assert counted("presence", finding="Mass", kind="real") == (2, 3)
    assert read.rate("presence", reader="ben")["unsure"] == 1  # type: ignore[index]
    assert read.rate("plausibility", reader="ben") is None


def test_rejected_and_contradicted_images_are_named(folder: Path) -> None:
    read = results(read_readings(folder), ROWS)
    assert read.rejected[["uid", "reader", "reason"]].to_numpy().tolist() == [["s1", "anna", "implausible"]]
    assert read.contradictions[["uid", "reader", "reason"]].to_numpy().tolist() == [
        ["r2", "anna", "label absent, read present"], ["s1", "anna", "label present, read absent"]
    ]  # fmt: skip


def test_kappa_is_of_the_images_that_both_read(folder: Path) -> None:
    read = results(read_readings(folder), ROWS)
    origin = read.kappas[read.kappas["question"] == "origin"].iloc[0]
    # anna: real synthetic real, ben: real real real; p_o = 2/3, p_e = 2/3
    assert (origin["images"], origin["agreement"], origin["kappa"]) == (3, pytest.approx(2 / 3), pytest.approx(0))
    assert set(read.kappas["question"]) == {"origin", "presence"}


def test_verdicts_of_a_report_are_a_reader(tmp_path: Path) -> None:
    file = tmp_path / "report-ben.csv"
    file.write_text('uid,verdict,comment\ns1,reject,"two hearts, blurred"\ns2,Accept,\nr1,,later\nother,reject,\n')
    read = results(read_readings(tmp_path, file), ROWS)
    assert read.rejected.to_numpy().tolist() == [["s1", "report-ben", "", "rejected", "two hearts, blurred"]]
    assert read.readings == {"report-ben": 2}
    file.write_text("uid,verdict,comment,reader\ns1,reject,,AK\ns2,accept,,\ns2,reject,,AK\n")
    named = results(read_readings(tmp_path, file), ROWS)
    assert named.readings == {"AK": 2, "report-ben": 1}
    file.write_text("uid,verdict\ns1,maybe\n")
    with pytest.raises(InputError, match="line 2: verdict is 'maybe'"):
        read_readings(tmp_path, file)


def test_a_run_that_nobody_has_read_has_no_results(tmp_path: Path, folder: Path) -> None:
    assert review_results(tmp_path / "nothing") is None
    ROWS.rename_axis("uid").to_parquet(folder / "manifest.parquet")
    read = review_results(folder)
    assert read is not None
    assert read.readers == ("anna", "ben")
    assert math.isfinite(read.rate("origin")["low"])  # type: ignore[index]
