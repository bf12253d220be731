"""Turns what a spreadsheet says of a finding into 1, 0, -1 (uncertain) and NaN (unknown).

Numbers 1, 0 and -1 and blanks count as they are. The words of `WORDS` count without a mapping, in any case. Anything
else (grades, probabilities, words of another kind) needs a mapping by the user, and is an error without one.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from medlt.data.columns import more
from medlt.types import InputError

WORDS = {
    **dict.fromkeys("1 yes y true present positive pos + x ja j".split(), 1.0),
    **dict.fromkeys("0 no n false absent negative neg nein".split(), 0.0),
    **dict.fromkeys(("-1", "uncertain", "equivocal"), -1.0),
    **dict.fromkeys(("", "unknown", "?"), np.nan),
}
"""Words and the labels that they mean: English, and German ja and nein."""
NAMED = {"1": 1.0, "0": 0.0, "-1": -1.0, "unknown": np.nan, "": np.nan}
"""What a mapping may map to."""
_COMPARED = re.compile(r"(>=|<=|>|<)\s*([-+]?\d+(?:\.\d+)?)")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_PLAIN = (1.0, 0.0, -1.0)


def as_labels(
    cells: pd.DataFrame, mapping: Mapping[str, str], uids: pd.Series, table: Path
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return the label columns `cells` as float64, and notes on the words and mapped values in them.

    mapping: cell or comparison -> label, such as {"2": "1", "severe": "1", ">=0.5": "1"}. Raises InputError for a
    mapping to another label or of a value that no cell has, and, with the uid of its row, for a cell without a meaning.
    """
    rules = {_text(key): _target(key, label) for key, label in mapping.items()}
    cells = cells.loc[:, ~cells.columns.duplicated()]
    used: Counter[tuple[str, float]] = Counter()
    columns = {name: _column(cells[name], rules, used, uids, table) for name in cells.columns}
    seen = {text for text, _ in used}
    if idle := [key for key in mapping if not any(_applies(_text(key), text) for text in seen)]:
        raise InputError(f"{table}: no label column holds {idle[0]!r}{more(idle)}; correct --value")
    named = {1.0: "present", 0.0: "absent", -1.0: "uncertain"}
    words = [
        f"{text!r} is {named.get(label, 'unknown')} ({count})"
        for (text, label), count in sorted(used.items(), key=str)
        if text not in ("1", "0", "-1") or str(label) != str(float(text))
    ]
    notes = (f"label values: {', '.join(words)}",) if words else ()
    return pd.DataFrame(columns, index=cells.index), notes


def is_label_column(cells: pd.Series) -> bool:
    """Return whether the column holds only 0, 1, -1 and blanks, or only `WORDS`, both for present and for absent."""
    kinds = cells.dropna().drop_duplicates()
    if not len(kinds) or kinds.isin(_PLAIN).all():
        return bool(len(kinds))
    meanings = [WORDS.get(_text(kind)) for kind in kinds]
    return None not in meanings and {0.0, 1.0} <= set(meanings)


def _column(
    cells: pd.Series, rules: Mapping[str, float], used: Counter[tuple[str, float]], uids: pd.Series, table: Path
) -> pd.Series:
    """Return float64 labels and count the cells of each text and meaning in `used`."""
    counts = cells.value_counts()
    meanings = {kind: _meaning(_text(kind), rules) for kind in counts.index}
    if strange := [kind for kind, meaning in meanings.items() if meaning is None]:
        row = cells.eq(strange[0]).fillna(False).to_numpy().argmax()
        where = f"{table}: finding {cells.name}, uid {uids.iloc[row]}"
        value = strange[0] if isinstance(strange[0], str) else _text(strange[0])
        advice = f"map it with --value '{value}=1', '{value}=0' or '{value}=unknown'"
        if not isinstance(strange[0], str) and len(strange) > 2:
            advice = "map such values with, for example, --value '>=0.5=1' and --value '<0.5=0'"
        if isinstance(strange[0], str) and 1 < len(strange) == len(meanings):
            advice += f"; if the column holds names of findings, give it with --label-column '{cells.name}'"
        shown = repr(value) if isinstance(strange[0], str) else value
        raise InputError(f"{where}: label {shown} is not 0, 1 or blank{more(strange)}; {advice}")
    for kind, count in counts.items():
        used[_text(kind), meanings[kind]] += int(count)  # type: ignore[index]
    return cells.map(meanings).astype(np.float64)


def _meaning(text: str, rules: Mapping[str, float]) -> float | None:
    """Return the label of a cell: by an exact rule, a comparison, or a word; None if it has none."""
    if text in rules:
        return rules[text]
    compared = next((label for rule, label in rules.items() if _applies(rule, text)), None)
    return WORDS.get(text) if compared is None else compared


def _applies(rule: str, text: str) -> bool:
    """Return whether a rule, a value or a comparison with a number, is of this text."""
    if not (compared := _COMPARED.fullmatch(rule)):
        return rule == text
    try:
        return _COMPARE[compared[1]](float(text), float(compared[2]))
    except ValueError:
        return False


def _target(key: str, label: object) -> float:
    """Return the label that a rule maps to. Raises InputError for any other."""
    name = _text(label)
    if name not in NAMED:
        raise InputError(f"--value '{key}={label}' maps to no label; map to 1, 0, -1 or unknown")
    return NAMED[name]


def _text(value: object) -> str:
    """Return a cell as lower-case text without blanks at its ends; '1' for True, 1, 1.0 and '1.0'."""
    text = str(value).strip().lower()
    if isinstance(value, bool | np.bool_):
        return text
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else repr(number)
