"""The batches of a training, each made one step ahead in a thread by MONAI's ThreadDataLoader.

A batch is a function of the number of its step. So the loader changes no result, and a resumed training continues at
any step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

from monai.data import ThreadDataLoader
from monai.data.thread_buffer import buffer_iterator
from torch.utils.data import DataLoader, Dataset

from medlt.rng import torch_generator

T = TypeVar("T")


class ThreadLoader(ThreadDataLoader):  # type: ignore[misc]
    """MONAI's ThreadDataLoader, with errors of its thread raised in their place.

    MONAI 1.6 prints them on stderr and ends the epoch, as if the data set ended there.
    """

    def __iter__(self) -> Iterator[Any]:
        source = _with_errors(DataLoader.__iter__(self))
        for batch, error in buffer_iterator(source, self.buffer_size, self.buffer_timeout, self.repeats):
            if error is not None:
                raise error
            yield batch


def _with_errors(batches: Iterable[T]) -> Iterator[tuple[T | None, BaseException | None]]:
    """Yield each batch with None, and last, if the batches raise an error, None with the error."""
    try:
        for batch in batches:
            yield batch, None
    except Exception as error:
        yield None, error


class _Steps(Dataset[Any]):
    """A data set whose item `step` is the batch of that step."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> Any:
        return self.make(step)


def _unchanged(item: T) -> T:
    return item


class StepBatches(Generic[T]):
    """Call make(step) for consecutive steps, and make the next batch in a background thread meanwhile.

    The parts of one step share its batch. No step from `end` on is made ahead. Use it as a context manager: at its end
    the thread has ended. An error of `make` is raised at the call for its step.
    """

    def __init__(self, make: Callable[[int], T], end: int) -> None:
        self.make, self.end = make, end
        self.last: tuple[int, T] | None = None
        self.batches: Iterator[T] = iter(())

    def __enter__(self) -> StepBatches[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def __call__(self, step: int) -> T:
        """Return the batch of `step`. The next one is made meanwhile if it comes before `end`."""
        if self.last is None or step not in (self.last[0], self.last[0] + 1):
            self._close()
            self.batches = self._from(step)
        if self.last is None or step != self.last[0]:
            self.last = step, self._next()
        return self.last[1]

    def _next(self) -> T:
        """Return the next batch. After an error the thread has ended, and the next call begins again."""
        try:
            return next(self.batches)
        except BaseException:
            self._close()
            raise

    def _from(self, step: int) -> Iterator[T]:
        """Return the batches from `step` on.

        The loader has a generator of its own: it draws a number at its start, which would move torch's global one.
        """
        loader = ThreadLoader(
            _Steps(self.make),
            batch_size=None,
            sampler=range(step, max(self.end, step + 1)),
            collate_fn=_unchanged,
            generator=torch_generator("loader"),
        )
        return iter(loader)

    def _close(self) -> None:
        """End the thread."""
        if hasattr(self.batches, "close"):
            self.batches.close()
        self.batches, self.last = iter(()), None
