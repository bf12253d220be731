"""A record with a checksum is read as it was written, or not at all, by all that read audit.json."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlt.api.results import Audit
from medlt.records import with_checksum, without_checksum
from medlt.report.collect import collect
from medlt.types import InputError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
RECORDS = st.dictionaries(st.text().filter(lambda name: name != "checksum"), JSON, max_size=4)
AUDIT = {"results": [{"name": "copies", "passed": True, "sentence": "No copy of 12."}], "conclusion": "No leak."}


@given(RECORDS)
def test_a_record_is_read_as_it_was_written(record: dict[str, object]) -> None:
    assert without_checksum(json.dumps(with_checksum(record), sort_keys=True)) == record


def test_a_record_without_a_checksum_is_not_compared() -> None:
    assert without_checksum('{"a": 1}') == {"a": 1}


@pytest.mark.parametrize("text", ["[]", '"text"', "3", "null"])
def test_no_object_is_no_record(text: str) -> None:
    with pytest.raises(TypeError):
        without_checksum(text)


@pytest.mark.parametrize(("before", "after"), [("No copy of 12", "No copy of 13"), ("true", "null"), ("leak", "lead")])
def test_a_damaged_audit_is_not_shown(tmp_path: Path, before: str, after: str) -> None:
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    text = json.dumps(with_checksum(AUDIT))
    (tmp_path / "audit.json").write_text(text)
    assert collect(tmp_path).audit == Audit.read(tmp_path / "audit.json").record == AUDIT
    (tmp_path / "audit.json").write_text(text.replace(before, after))
    for read in (lambda: collect(tmp_path), lambda: Audit.read(tmp_path / "audit.json")):
        with pytest.raises(InputError, match=r"audit\.json: .*again") as error:
            read()
        assert "\n" not in str(error.value)
