"""A text in an exported table is never a formula, a number stays a number, and reading gives the same text back."""

import csv
import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlt.csv_text import as_csv, escape, is_formula, unescape, unescaped, write_rows

FORMULAS = [
    '=HYPERLINK("http://x","y")',
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "+cmd|' /C calc'!A0",
    "＝1+1",
    "'=1",
    "''-a",
]
PLAIN = ["-1", "+1", "-.5", "1e-3", "", "a=1", "'tis", "O'Neil", "Mass", "-1.", "٣", " =1"]
NEAR = st.text("'=+-@\t\r1.ea\n", max_size=6) | st.text(max_size=6)


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_gets_an_apostrophe(text: str) -> None:
    assert escape(text) == f"'{text}"
    assert unescape(escape(text)) == text


@pytest.mark.parametrize("value", [*PLAIN, -1, -2.5, None, True])
def test_anything_else_stays(value: object) -> None:
    assert escape(value) is value
    assert unescape(value) is value


@given(NEAR)
def test_reading_undoes_it_and_no_cell_begins_like_a_formula(text: str) -> None:
    cell = escape(text)
    assert unescape(cell) == text
    assert cell[:1] not in ("=", "@", "\t", "\r", "＝", "＠")
    assert cell[:1] not in ("+", "-") or pd.to_numeric(cell) is not None  # raises for what is no number


@given(st.lists(st.tuples(NEAR, NEAR), min_size=1, max_size=4), NEAR)
def test_tables_come_back(rows: list[tuple[str, str]], name: str) -> None:
    table = pd.DataFrame(rows, columns=["a", f"b{name}"], dtype=object)
    read = pd.read_csv(io.StringIO(as_csv(table), newline=""), dtype=str, keep_default_na=False)
    assert unescaped(read).to_numpy().tolist() == table.to_numpy().tolist()
    out = io.StringIO(newline="")
    write_rows(out, rows)
    back = [[unescape(cell) for cell in row] for row in csv.reader(io.StringIO(out.getvalue(), newline=""))]
    assert back == [list(row) for row in rows]


def test_columns_and_index_are_escaped_and_numbers_keep_their_type() -> None:
    table = pd.DataFrame(
        {"=a": [-1, 2], "b": ["@x", None], "c": [-0.5, float("nan")]}, pd.Index(["-u", "v"], name="uid")
    )
    assert as_csv(table, index=True) == "uid,'=a,b,c\n'-u,-1,'@x,-0.5\nv,2,,\n"
    plain = table.set_axis(["a", "b", "c"], axis=1).assign(b="x").set_axis(pd.Index(["u", "v"], name="uid"), axis=0)
    assert as_csv(plain, index=True) == plain.to_csv()
    assert not is_formula("-1")
