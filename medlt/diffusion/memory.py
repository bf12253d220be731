"""Recovery from out-of-memory errors: half the rows per call from then on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medlt.types import InputError

_MESSAGES = ("not enough memory", "can't allocate memory", "out of memory")


def out_of_memory(error: BaseException) -> bool:
    """Return True for an out-of-memory error of an accelerator, of torch's CPU allocator, or of Python."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


class BackOff:
    """`fn` (tensors [B,...] -> tensor [B,...]) over any number of rows, at most `rows` a call.

    A call that runs out of memory is repeated with half its rows, and no later call is larger. Every row is returned
    once, in its place. `rows` is the current number of rows per call. Raises InputError if one row alone does not fit,
    and passes every other error on. Whether the bytes of a row depend on the size of its call is a property of `fn`.
    """

    def __init__(self, fn: Callable[..., Tensor], rows: int, what: str = "sampling") -> None:
        self.fn, self.rows, self.what = fn, rows, what

    def __call__(self, *tensors: Tensor) -> Tensor:
        """Return fn over rows [B,...] of each tensor, B >= 1."""
        parts: list[Tensor] = []
        done = 0
        while done < len(tensors[0]):
            size = self.rows
            if (part := self._tried(*(tensor[done : done + size] for tensor in tensors))) is not None:
                parts.append(part)
                done += size
            else:
                self._halve(min(size, len(tensors[0]) - done))
        return torch.cat(parts)

    def _tried(self, *tensors: Tensor) -> Tensor | None:
        """Return the result of one call, or None if memory ran out. The tensors of a failed call are freed."""
        try:
            return self.fn(*tensors)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        return None

    def _halve(self, tried: int) -> None:
        """Halve the number of rows that did not fit."""
        if tried == 1:
            raise InputError(f"{self.what}: a single image does not fit into memory; reduce its size, or use bf16")
        self.rows = tried // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
