"""Running ahead: same items, same order, errors where they belong, a clean end whatever happens."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from medlt.diffusion.prefetch import prefetch, to_host


def counted(n: int, log: list[str], fail_at: int | None = None) -> Iterator[int]:
    try:
        for i in range(n):
            if i == fail_at:
                raise ValueError(f"item {i}")
            log.append(f"made {i}")
            yield i
    finally:
        log.append("closed")


def alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ahead"]


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_items_come_in_order_and_the_thread_ends(n: int, depth: int) -> None:
    log: list[str] = []
    assert list(prefetch(counted(n, log), depth)) == list(range(n))
    assert log[-1] == "closed"
    assert not alive()


def test_an_error_comes_after_the_items_before_it() -> None:
    got: list[int] = []
    with pytest.raises(ValueError, match="item 3"):
        got.extend(prefetch(_noting(got, counted(5, [], fail_at=3)), 2))
    assert got[:3] == [0, 1, 2]
    assert not alive()


def _noting(got: list[int], items: Iterator[int]) -> Iterator[int]:
    for item in items:
        got.append(item)
        yield item


@pytest.mark.parametrize("how", [KeyboardInterrupt, RuntimeError, None])
def test_a_consumer_that_stops_closes_the_source(how: type[BaseException] | None) -> None:
    log: list[str] = []

    def consume() -> None:
        for item in prefetch(counted(1000, log), 2):
            if item == 3:
                if how is None:
                    return
                raise how

    if how is None:
        consume()
    else:
        with pytest.raises(how):
            consume()
    assert log[-1] == "closed"
    assert len(log) < 10
    assert not alive()


def test_no_more_is_made_ahead_than_asked_for() -> None:
    log: list[str] = []
    items = prefetch(counted(100, log), 2)
    next(items)
    for _ in range(600):  # however slow the machine is, the source gets its turn
        if len(log) >= 4:
            break
        time.sleep(0.1)
    time.sleep(0.2)
    assert len(log) == 4  # one taken, two waiting, one in hand
    items.close()  # type: ignore[attr-defined]


def test_the_next_item_is_made_while_this_one_is_used() -> None:
    met = threading.Barrier(2, timeout=60)

    def items() -> Iterator[int]:
        yield 0
        met.wait()
        yield 1

    seen = []
    for item in prefetch(items()):
        seen.append(item)
        if item == 0:
            met.wait()  # would time out if the source waited for us
    assert seen == [0, 1]


def test_threads_and_gradient_mode_are_the_callers() -> None:
    def modes() -> Iterator[tuple[int, bool]]:
        yield torch.get_num_threads(), torch.is_grad_enabled()

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with torch.no_grad():
            assert list(prefetch(modes())) == [(1, False)]
        torch.set_num_threads(2)
        assert list(prefetch(modes())) == [(2, True)]
    finally:
        torch.set_num_threads(before)


def test_host_memory_stays_as_it_is() -> None:
    x = torch.arange(3)
    assert torch.equal(to_host(x), x)


@pytest.mark.gpu
def test_a_copy_from_the_gpu_is_whole_when_it_is_handed_over() -> None:
    x = torch.randn(1000, 1000, device="cuda")
    y = to_host(x @ x)
    assert y.is_pinned()
    torch.testing.assert_close(y, (x @ x).cpu())
