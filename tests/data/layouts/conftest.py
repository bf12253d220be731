"""Collections of a few empty files, laid out as published. Layouts never open an image."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import pytest

from medlt.data.layouts import LayoutResult, read_layout

Tree = Callable[..., Path]


@pytest.fixture
def touch(tmp_path: Path) -> Callable[[Iterable[str]], Path]:
    """touch(paths): make empty files below src/, which is returned."""

    def make(paths: Iterable[str]) -> Path:
        (tmp_path / "src").mkdir(exist_ok=True)
        for path in paths:
            (tmp_path / "src" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "src" / path).touch()
        return tmp_path / "src"

    return make


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """put(path, column=values, ...): write a table below src/, gzipped if its name says so."""

    def write(path: str, /, **columns: object) -> Path:
        place = tmp_path / "src" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(columns).to_csv(place, index=False)
        return place

    return write


def positives(result: LayoutResult) -> dict[str, set[str]]:
    """{uid: findings at 1}."""
    rows = result.manifest.rows
    return {uid: {f for f in result.manifest.findings if rows.at[uid, f] == 1} for uid in rows.index}


def lost(result: LayoutResult, kind: str) -> list[str]:
    """Paths of one kind of orphan."""
    return sorted(result.orphans.loc[result.orphans["kind"] == kind, "path"])


@pytest.fixture(name="positives")
def positives_fixture() -> Callable[[LayoutResult], dict[str, set[str]]]:
    return positives


@pytest.fixture(name="lost")
def lost_fixture() -> Callable[[LayoutResult, str], list[str]]:
    return lost


@pytest.fixture
def read() -> Callable[..., LayoutResult]:
    """read(layout, src, **options) -> LayoutResult."""
    return lambda layout, src, **options: read_layout(layout, src, options)
