"""Two things at once: the next batch is made in the background while this one is checked, encoded and written."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def ahead(items: Iterable[T], depth: int = 1) -> Iterator[T]:
    """The same items in the same order; up to `depth` finished ones wait while a background thread makes the next.

    An error of `items` is raised where its item would have come. When the consumer stops early - it breaks off, fails,
    or is interrupted - the source is closed after the item it is at, and the thread ends before control returns. The
    thread has the caller's number of torch threads and gradient mode. Nothing runs before the first item is asked for.
    """
    waiting: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stop, threads, learns = threading.Event(), torch.get_num_threads(), torch.is_grad_enabled()

    def work() -> None:
        torch.set_num_threads(threads)
        with torch.set_grad_enabled(learns):
            _fill(iter(items), waiting, stop)

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = waiting.get()
            if kind == "item":
                yield value
            elif kind == "error":
                raise value
            else:
                return
    finally:
        stop.set()
        with suppress(queue.Empty):  # a producer that waits for room goes on, sees the sign and ends
            while True:
                waiting.get_nowait()
        thread.join()


def _fill(items: Iterator[Any], waiting: queue.Queue[tuple[str, Any]], stop: threading.Event) -> None:
    """Put every item, then how it ended; give up at the sign to stop, and close the source."""

    def put(kind: str, value: Any) -> bool:
        while not stop.is_set():
            with suppress(queue.Full):
                waiting.put((kind, value), timeout=0.1)
                return True
        return False

    try:
        for item in items:
            if not put("item", item):
                break
        put("end", None)
    except BaseException as error:
        put("error", error)
    finally:
        if hasattr(items, "close"):
            items.close()


def to_host(tensor: Tensor) -> Tensor:
    """The tensor in host memory: through page-locked memory from an accelerator, waiting for this copy alone."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    held.copy_(tensor, non_blocking=True)
    done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()
    done.synchronize()
    return held
