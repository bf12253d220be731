"""Rows of the cohort made by hand, so that one label differs and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Row = dict[str, object]


@pytest.fixture
def row() -> Callable[..., Row]:
    def build(number: int = 0, *findings: str, view: str = "PA", sex: str | None = None, age: int = 55) -> Row:
        identity = {"uid": f"u{number}", "patient_id": f"p{number}", "study": 1}
        return {**identity, "view": view, "sex": sex or "MF"[number % 2], "age": age, **dict.fromkeys(findings, 1.0)}

    return build
