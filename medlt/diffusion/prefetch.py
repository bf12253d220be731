"""Prefetching: a background thread makes the next batch while this one is checked, encoded and written."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def prefetch(items: Iterable[T], depth: int = 1) -> Iterator[T]:
    """Yield the same items in the same order, while a background thread makes up to `depth` of the next ones.

    An error of `items` is raised at the position of its item. If the consumer stops early (by a break, an error or an
    interrupt), the source is closed after its current item, and the thread ends before control returns. The thread has
    the caller's number of torch threads and gradient mode. Nothing runs before the first item is requested.
    """
    waiting: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stop, threads, grad = threading.Event(), torch.get_num_threads(), torch.is_grad_enabled()

    def work() -> None:
        torch.set_num_threads(threads)
        with torch.set_grad_enabled(grad):
            _fill(iter(items), waiting, stop)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
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
        with suppress(queue.Empty):  # empty the queue, so that a producer waiting for space continues and ends
            while True:
                waiting.get_nowait()
        thread.join()


def _fill(items: Iterator[Any], waiting: queue.Queue[tuple[str, Any]], stop: threading.Event) -> None:
    """Put every item and the end or the error into the queue; return when `stop` is set; close the source."""

    def offer(kind: str, value: Any) -> bool:
        while not stop.is_set():
            with suppress(queue.Full):
                waiting.put((kind, value), timeout=0.1)
                return True
        return False

    try:
        for item in items:
            if not offer("item", item):
                break
        offer("end", None)
    except BaseException as error:
        offer("error", error)
    finally:
        if hasattr(items, "close"):
            items.close()


def to_host(tensor: Tensor) -> Tensor:
    """Return the tensor in host memory. From an accelerator, copy it to page-locked memory and wait for this copy."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()
    done.synchronize()
    return host
