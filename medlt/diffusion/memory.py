"""Going on when memory runs out: half the rows a call, from then on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medlt.types import InputError

_SAYINGS = ("not enough memory", "can't allocate memory", "out of memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether this error says that memory ran out: of an accelerator, of torch's CPU allocator, or of Python."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error) for saying in _SAYINGS)


class BackOff:
    """`fn` (tensors [B,...] -> tensor [B,...]) over any number of rows, at most `rows` a call.

    A call that runs out of memory is made again with half its rows, and no later call is larger; every row comes back
    once, in its place. `rows` is the number a call in force. Raises InputError when one row alone does not fit, and
    passes every other error on. Whether a row's bytes depend on the size of its call is `fn`'s affair.
    """

    def __init__(self, fn: Callable[..., Tensor], rows: int, what: str = "sampling") -> None:
        self.fn, self.rows, self.what = fn, rows, what

    def __call__(self, *tensors: Tensor) -> Tensor:
        """fn over rows [B,...] of each tensor, B >= 1."""
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
        """One call, or None if memory ran out; the failed call's tensors are gone by then."""
        try:
            return self.fn(*tensors)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        return None

    def _halve(self, tried: int) -> None:
        """Fewer rows than the number that did not fit."""
        if tried == 1:
            raise InputError(f"{self.what}: one image alone does not fit into memory; lower its size, or use bf16")
        self.rows = tried // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
