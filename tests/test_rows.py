"""Rows that stay on disk behave like those of a tensor, and are read only where they are indexed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medlt.rows import StoredRows, chunks, subset

TRUTH = torch.arange(7 * 2 * 3).reshape(7, 2, 3).float()
NAMES = [f"content {i}" for i in range(7)]


class Disk:
    """A source that counts the rows that it reads."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __call__(self, numbers: np.ndarray) -> torch.Tensor:
        self.read += numbers.tolist()
        return TRUTH[torch.from_numpy(numbers)]


def stored(disk: Disk) -> StoredRows:
    return StoredRows(disk, NAMES, (2, 3), torch.float32, np.arange(7, dtype=np.int64))


INDICES = st.one_of(
    st.lists(st.integers(-7, 6), max_size=9).map(lambda one: np.array(one, np.int64)),
    st.lists(st.booleans(), min_size=7, max_size=7).map(np.array),
    st.slices(7).filter(lambda one: one.step is None or one.step > 0),
)


@given(INDICES, st.booleans())
def test_indexing_is_that_of_a_tensor(at: np.ndarray | slice, as_tensor: bool) -> None:
    disk = Disk()
    index = torch.from_numpy(at) if as_tensor and isinstance(at, np.ndarray) else at
    taken = stored(disk)[index]
    assert torch.equal(taken, TRUTH[index])
    assert len(disk.read) == len(taken)


@given(INDICES)
def test_a_subset_reads_nothing_and_names_its_rows(at: np.ndarray | slice) -> None:
    disk = Disk()
    part = subset(stored(disk), at)  # type: ignore[arg-type]  # a slice too
    assert isinstance(part, StoredRows)
    assert disk.read == []
    assert part.shape == TRUTH[at].shape
    assert part.digest_names() == np.array(NAMES)[at].tolist()
    assert torch.equal(part[:], TRUTH[at])
    assert torch.equal(part.loaded()[:], TRUTH[at])


@pytest.mark.parametrize("size", [1, 3, 7, 50])
def test_chunks_give_every_row_once_in_order(size: int) -> None:
    parts = list(chunks(stored(Disk()), size))
    assert max(map(len, parts)) <= size
    assert torch.equal(torch.cat(parts), TRUTH)
    assert torch.equal(torch.cat(list(chunks(TRUTH, size))), TRUTH)
    assert not list(chunks(stored(Disk()).subset(slice(0, 0)), size))


def test_few_rows_are_kept_in_memory_and_many_are_not() -> None:
    disk = Disk()
    rows = stored(disk)
    assert rows.loaded(most=7 * 24 - 1) is rows
    assert disk.read == []
    kept = rows.subset(np.array([4, 2])).loaded(most=2 * 24)
    assert disk.read == [4, 2]
    assert torch.equal(kept[np.array([1, 0, 1])], TRUTH[[2, 4, 2]])
    assert disk.read == [4, 2]
    assert kept.digest_names() == ["content 4", "content 2"]
