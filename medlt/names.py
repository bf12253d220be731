"""Names of findings: suggestions for misspelt ones, and which one means that there is no finding."""

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


def means_no_finding(name: str) -> bool:
    """Return whether a label means that there is no finding: 'No Finding' however spelt, or 'Normal' (CXR-LT 2024)."""
    return re.sub(r"[\W_]+", "", name).lower() in ("nofinding", "normal")


def no_finding(findings: Iterable[str]) -> str | None:
    """Return the first of `findings` that means that there is no finding, or None."""
    return next((name for name in findings if means_no_finding(name)), None)
