"""A reader's file: safe names, a round trip, and errors that name the line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlt.review.answers import QUESTIONS, ReaderAnswer, as_csv, clean_comment, read_answers, reader_file
from medlt.types import InputError


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/b", "a\\b", ".hidden", "-x", "a b", "x" * 41, "a\n", "con:", "ä"]
)
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="--reader"):
        reader_file(tmp_path, name)


def test_two_readers_never_share_a_file_on_a_system_without_case(tmp_path: Path) -> None:
    file = reader_file(tmp_path, "anna")
    assert file == tmp_path / "review" / "anna.csv"
    file.parent.mkdir()
    file.write_bytes(as_csv([]))
    with pytest.raises(InputError, match=r"anna\.csv exists"):
        reader_file(tmp_path, "Anna")


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


@given(st.lists(st.tuples(st.integers(0, 9), texts, texts, *(st.sampled_from(["", *q]) for q in QUESTIONS.values()))))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str, ...]]) -> None:
    file = tmp_path_factory.mktemp("answers") / "r.csv"
    written = {}
    for seed, uid, comment, *values in rows:
        answer = ReaderAnswer(seed, clean_comment(uid), "Mass", *values, comment=clean_comment(comment))
        written[answer.seed, answer.uid] = answer
    file.write_bytes(as_csv(written.values()))
    assert read_answers(file) == written


@pytest.mark.parametrize(
    ("line", "message"),
    [("1,u,Mass,maybe,,,", "line 2: origin is 'maybe'"), ("x,u,Mass,real,,,", "line 2: seed is 'x'"),
     ("1,u,Mass", "line 2: no value of 'origin'")],
)  # fmt: skip
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "r.csv"
    file.write_bytes(as_csv([]) + line.encode() + b"\n")
    with pytest.raises(InputError, match=message):
        read_answers(file)
