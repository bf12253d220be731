"""YAML of any origin is read as a plain document, or refused in one short line at once."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from medlt import config
from medlt.types import InputError
from medlt.yaml_text import MOST_VALUES, read_yaml

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(st.characters(codec="ascii"), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4),
    max_leaves=12,
)


def sequences(levels: int) -> str:
    """Lists of ten aliases of the list before: 10 ** levels values in a few lines."""
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    return "\n".join(lines + [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, levels)])


def merges(levels: int) -> str:
    """Sections that each merge the one before thirty times, which a loader writes out."""
    lines = ["s0: &s0 {key: 1}"]
    return "\n".join(lines + [f"s{n}: &s{n}\n  <<: [{', '.join([f'*s{n - 1}'] * 30)}]" for n in range(1, levels)])


@given(PLAIN)
def test_plain_documents_are_read_as_they_are(value: Any) -> None:
    assert read_yaml(yaml.safe_dump(value)) == value


def test_aliases_and_merged_sections_are_read() -> None:
    text = "a: &a {x: 1, y: [1, 2]}\nb: *a\nc: {<<: *a, x: 3}\n"
    assert read_yaml(text) == yaml.safe_load(text) == {"a": (a := {"x": 1, "y": [1, 2]}), "b": a, "c": {**a, "x": 3}}
    assert read_yaml("") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (sequences(9), f"stands for more than {MOST_VALUES:,} values"),
        (merges(9), f"stands for more than {MOST_VALUES:,} values"),
        ("a: &a {b: *a}", "line 1: a section holds itself"),
        ("a: &a\n- *a", "a section holds itself"),
        ("[" * 5000 + "]" * 5000, "recursion"),
        ("seed: " + "9" * 6000, "integer string conversion"),
        ("when: 2001-13-45", "month must be in 1..12"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: 1\nb: 2\na: 3", "'a' is given twice, again in line 3"),
        ("a: [", "expected the node content"),
        ("a\0b", "unacceptable character"),
        ("? [a]\n: b", "line 1: found unhashable key"),
        ("a: 1\n---\nb: 2", "line 2: but found another document"),
    ],
)
def test_the_rest_is_refused_in_one_short_line_and_at_once(text: str, reason: str, tmp_path: Path) -> None:
    """A second is thirty times what the slowest takes: a limit against endless work, and no measure of speed."""
    began = time.process_time()
    with pytest.raises(InputError, match="not readable as YAML: ") as refused:
        read_yaml(text)
    assert time.process_time() - began < 1 or "recursion" in reason
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 200
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"a\.yaml: not readable as YAML") as shown:
        config.load_config(file)
    assert "\n" not in str(shown.value)


@pytest.mark.parametrize("codec", ["latin-1", "utf-16"])
def test_a_config_in_another_encoding_is_refused_with_what_to_do(tmp_path: Path, codec: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes("method: füsion".encode(codec))
    with pytest.raises(InputError, match=r"a\.yaml: is no UTF-8 text; save it as UTF-8"):
        config.load_config(file)


def test_an_override_is_read_as_carefully(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("method: fusion")
    with pytest.raises(InputError, match=r"^override seed: not readable as YAML: Exceeds the limit .{0,130}$"):
        config.load_config(file, ["seed=" + "9" * 5000])
