"""Links of a source: reported by default, followed with `follow_links`, each folder once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medlt.data.convert.scan import scan

Film, Run = Callable[..., bytes], Callable[..., Any]


@pytest.fixture
def write(film: Film) -> Callable[[Path, int], None]:
    """write(path, seed) -> a film with pixels of its own."""

    def make(path: Path, seed: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            film(np.roll(np.arange(256, dtype=np.uint16).reshape(16, 16), seed), SOPInstanceUID=f"1.{seed}")
        )

    return make


def names(source: Path, **options: Any) -> dict[str, str]:
    """{file: reason} of a scan, which must list nothing twice."""
    entries = list(scan(source, **options))
    assert len({entry.relative for entry in entries}) == len(entries)
    return {entry.relative: entry.reason for entry in entries}


def test_links_leave_the_source_and_every_folder_is_listed_once(tmp_path: Path, write: Callable[..., None]) -> None:
    source, store = tmp_path / "in", tmp_path / "store"
    write(source / "real/a", 1)
    write(store / "b", 2)
    (source / "file").symlink_to(store / "b")
    (source / "all").symlink_to(store)
    (source / "again").symlink_to(store)
    (source / "early").symlink_to(source / "real")
    (source / "real/up").symlink_to(source)
    (store / "back").symlink_to(source)
    (source / "self").symlink_to(source / "self")
    (source / "broken").symlink_to(tmp_path / "nowhere")
    os.mkfifo(source / "pipe")
    (source / "to_pipe").symlink_to(source / "pipe")
    bad = {"self": "missing", "broken": "missing", "pipe": "symlink", "to_pipe": "symlink"}
    assert names(source, follow=True) == {"real/a": "", "file": "", "again/b": "", **bad}
    links = ("file", "all", "again", "early", "real/up", "self", "broken", "pipe", "to_pipe")
    assert names(source) == {"real/a": "", **dict.fromkeys(links, "symlink")}


def test_an_annex_is_converted_under_the_names_of_its_links(
    tmp_path: Path, write: Callable[..., None], run: Run
) -> None:
    """git-annex: the content lies in .git/annex/objects, read-only; a file whose content is absent is a broken link."""
    source = tmp_path / "in"
    objects = source / ".git/annex/objects/x1"
    write(objects / "key1", 1)
    (source / "study").mkdir()
    (source / "study/film.dcm").symlink_to("../.git/annex/objects/x1/key1")
    (source / "study/absent.dcm").symlink_to("../.git/annex/objects/x2/key2")
    result = run(source, tmp_path / "out", follow_links=True)
    assert list(result.rows) == ["study/film.dcm"]
    assert result.reasons == {"study/absent.dcm": "missing"}
    write(source / ".git/annex/objects/x2/key2", 2)
    result = run(source, tmp_path / "out", follow_links=True)
    assert sorted(result.rows) == ["study/absent.dcm", "study/film.dcm"]
    assert result.reasons == {}


def test_a_changed_target_is_converted_again(tmp_path: Path, write: Callable[..., None], run: Run) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "store/a", 1)
    (tmp_path / "in/a").symlink_to(tmp_path / "store/a")
    first = run(tmp_path / "in", tmp_path / "out", follow_links=True).rows["a"]["uid"]
    write(tmp_path / "store/a", 2)
    assert run(tmp_path / "in", tmp_path / "out", follow_links=True).rows["a"]["uid"] != first


def test_a_link_to_where_the_output_is_does_not_convert_the_output(
    tmp_path: Path, write: Callable[..., None], run: Run
) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "work/a", 1)
    (tmp_path / "in/work").symlink_to(tmp_path / "work")
    for _ in range(2):
        assert list(run(tmp_path / "in", tmp_path / "work/out", follow_links=True).rows) == ["work/a"]


def test_a_source_that_is_a_link_is_followed_on_request(tmp_path: Path, write: Callable[..., None], run: Run) -> None:
    write(tmp_path / "store/a", 1)
    (tmp_path / "film").symlink_to(tmp_path / "store/a")
    assert run(tmp_path / "film", tmp_path / "out").reasons == {"film": "symlink"}
    assert list(run(tmp_path / "film", tmp_path / "followed", follow_links=True).rows) == ["film"]
