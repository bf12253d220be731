"""Suggestions for misspelt names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[object]) -> str:
    """Return '; did you mean X?' for the closest of the `known` names, or '' if none is close.

    Case, blanks, '_' and '-' are ignored, so that 'Pleural Effusion' is close to 'pleural_effusion'.
    """
    simple = {re.sub(r"[\W_]+", "", str(one)).lower(): str(one) for one in known}
    close = get_close_matches(re.sub(r"[\W_]+", "", name).lower(), simple, 1, 0.75)
    return f"; did you mean {simple[close[0]]!r}?" if close else ""
