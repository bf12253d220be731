"""Decoding of many latents, as fast as possible within a memory budget, with bytes that depend on neither.

On a CPU a reference layout defines the bytes of a row. For small latents it is two rows per call on one thread
(medlt.diffusion.batching explains why the bytes of a row then do not depend on its batch). For large latents, of which
one uses all threads, it is one row per call on all threads, so the bytes depend on the number of threads. Other layouts
are used only if a call gives the bytes of the reference; kernels are selected by shape, so one call is enough to test.
The first slices of real work are timed in each layout, and the fastest is used from then on.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from medlt.diffusion.batching import cores, fixed_batches, lanes
from medlt.diffusion.memory import out_of_memory
from medlt.diffusion.prefetch import prefetch
from medlt.diffusion.tiling import tiled
from medlt.types import Codec, InputError

TURNS = 2
LARGE = 1024
"""Latent pixels (256 x 256 px at factor 8) from which the reference is one row per call on all threads."""
LARGEST_WHOLE = 128
"""Latents with a longer side (1,024 px at factor 8) are decoded in tiles unless a tile size is given."""


@dataclass(frozen=True)
class Layout:
    """`lanes` parallel calls of `rows` rows, each on one thread; with 0 lanes, one call at a time on all threads."""

    rows: int
    lanes: int

    @property
    def chunk(self) -> int:
        """The number of rows that are decoded at a time."""
        return self.rows * max(1, self.lanes)

    def padded(self, count: int) -> int:
        """Return the number of rows that are computed for `count` rows: whole chunks."""
        return -(-count // self.chunk) * self.chunk

    def run(self, fn: Callable[..., Tensor], rows: Tensor) -> Tensor:
        """Return fn over any number of rows [N,...]. A short last call is padded."""
        if self.lanes:
            return fixed_batches(fn, self.rows, at_once=self.lanes)(rows)
        padding = -len(rows) % self.rows
        padded = torch.cat([rows, rows[:1].expand(padding, *rows.shape[1:])])
        return torch.cat([fn(piece.clone()) for piece in torch.split(padded, self.rows)])[: len(rows)]


class LiveBytes(TorchFunctionMode):
    """Counter of the bytes of live tensors that torch functions return inside the block; `peak` is the maximum.

    Memory that a function uses internally is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._current = 0
        self._alive: dict[int, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else (out,):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        at = storage.data_ptr()
        self._alive[at] = self._alive.get(at, 0) + 1
        if self._alive[at] == 1:
            self._current += storage.nbytes()
        self.peak = max(self.peak, self._current)
        weakref.finalize(tensor, self._drop, at, storage.nbytes())

    def _drop(self, at: int, size: int) -> None:
        self._alive[at] -= 1
        if not self._alive[at]:
            self._current -= size


def bytes_per_row(fn: Callable[[Tensor], Tensor], rows: Tensor) -> int:
    """Return the peak number of bytes of live tensors in fn(rows), per row."""
    with torch.no_grad(), LiveBytes() as live:
        fn(rows)
    return max(1, int(live.peak) // len(rows))


def usable(images: Tensor, flat_below: float = 0.01) -> Tensor:
    """Return True for images [B,1,H,W] that may be saved, bool [B].

    All their pixels are finite and have a standard deviation of at least `flat_below`; a blank image has less.
    """
    flat = images.flatten(1)
    return flat.isfinite().all(1) & (flat.std(1) >= flat_below)


class Decoder:
    """Decoder of any number of latents [B,C,h,w] to images [B,1,H,W]. An unusable image is NaN everywhere.

    `usable` detects NaN images, and they do not convert to bytes. On the CPU the bytes of a row depend on that row
    only. On an accelerator calls of 1, 2, 4, ... 64 rows, up to the memory budget, are timed on the first real work,
    since more rows per call can be slower per image. A size that runs out of memory is not tried again.

    Latents with more than `tile` pixels a side are cut into tiles (`medlt.diffusion.tiling`); None cuts only very large
    ones. `preview` is a tiny codec of the same latents (TAESD for Stable Diffusion). Raises InputError if its channels
    or its factor differ.
    """

    def __init__(
        self,
        codec: Codec,
        *,
        memory_budget_bytes: int = 1 << 30,
        layout: Layout | None = None,
        tile: int | None = None,
        preview: Codec | None = None,
    ) -> None:
        if preview is not None and (preview.channels, preview.factor) != (codec.channels, codec.factor):
            raise InputError(
                f"the preview codec has {preview.channels} channels and factor {preview.factor}, the codec "
                f"{codec.channels} and {codec.factor}; choose one made for the same latents"
            )
        self.codec = codec
        self.memory_budget_bytes = memory_budget_bytes
        self.tile = tile
        self._preview = preview
        self._given = layout
        self._seconds: dict[Layout, list[float]] = {}
        self._lock = threading.Lock()
        self._shape: tuple[int, ...] | None = None

    @property
    def layout(self) -> Layout:
        """The fastest layout so far, for full slices of latents of the last shape."""
        return self._given or self._fastest(self._slice)

    def _fastest(self, count: int) -> Layout:
        """Return the layout with the least expected time for `count` rows: seconds per row times padded rows."""
        unmeasured = [float("inf")]
        return min(self._seconds, key=lambda layout: min(self._seconds[layout] or unmeasured) * layout.padded(count))

    def __call__(self, latents: Tensor) -> Tensor:
        side, limit = max(latents.shape[-2:]), self.tile or LARGEST_WHOLE
        size = self.tile or LARGEST_WHOLE // 2
        with self._lock:
            whole = tiled(self._rows, latents, size, size // 4) if side > limit else self._rows(latents)
        bad = ~(usable(whole) & latents.flatten(1).isfinite().all(1).to(whole.device))
        whole[bad] = float("nan")
        return whole

    def stream(self, latents: Iterable[Tensor], depth: int = 1) -> Iterator[Tensor]:
        """Yield the images of each batch of latents, in order, while the next batch is sampled and decoded."""
        return prefetch(map(self, latents), depth)

    def preview(self, latents: Tensor) -> Tensor:
        """Return images fast, by the preview codec if there is one. They are not tested with `usable`."""
        return (self._preview or self.codec).decode(latents)

    def _rows(self, latents: Tensor) -> Tensor:
        """Return the images of latents of one shape, decoded slice by slice."""
        if self._shape != tuple(latents.shape[1:]):
            self._prepare(latents)
        images: list[Tensor] = []
        done = 0
        while done < len(latents):
            piece = latents[done : done + self._slice]
            images.append(self._timed(self._next(len(piece)), piece))
            done += len(piece)
        return torch.cat(images)

    def _timed(self, layout: Layout, piece: Tensor) -> Tensor:
        began = time.perf_counter()
        try:
            images = layout.run(self.codec.decode, piece)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            self._forget(layout)
        else:
            if len(piece) == self._slice and layout in self._seconds:
                self._seconds[layout].append((time.perf_counter() - began) / len(piece))
            return images
        return self._timed(self._next(len(piece)), piece)

    def _forget(self, layout: Layout) -> None:
        """Remove layouts of this many rows or more. Raises InputError if none is left."""
        self._seconds = {one: seconds for one, seconds in self._seconds.items() if one.chunk < layout.chunk}
        self._given = None
        if not self._seconds:
            raise InputError(f"decoding: {layout.chunk} images at once do not fit into memory; set a tile size")

    def _next(self, count: int) -> Layout:
        """Return a layout with fewer than `TURNS` measurements, else the fastest one for `count` rows."""
        untimed = [layout for layout, seconds in self._seconds.items() if len(seconds) < TURNS]
        return self._given or (untimed[0] if untimed else self._fastest(count))

    def _prepare(self, latents: Tensor) -> None:
        """Select the layouts that fit the budget and, on a CPU, give the bytes of the reference."""
        self._shape = tuple(latents.shape[1:])
        large, device = latents[0, 0].numel() >= LARGE, getattr(self.codec, "device", latents.device).type
        probe = torch.randn((1 if large else 8, *self._shape), generator=torch.Generator().manual_seed(0)).to(latents)
        room = self.memory_budget_bytes // bytes_per_row(self.codec.decode, probe[:2])
        candidates = self._candidates(room, device, large)
        self._slice = max(layout.chunk for layout in candidates)
        if device == "cpu":
            truth = self._truth(candidates[0], probe)
            same = [c for c in candidates if torch.equal(c.run(self.codec.decode, probe[: c.rows]), truth[: c.rows])]
            candidates = [candidates[0], *(layout for layout in same if layout != candidates[0])]
        self._seconds = {layout: [] for layout in candidates}

    def _truth(self, reference: Layout, probe: Tensor) -> Tensor:
        """Return the reference layout's images of the probe."""
        if not reference.lanes:
            return reference.run(self.codec.decode, probe)
        with lanes(1) as pool:
            return pool.submit(Layout(reference.rows, 1).run, self.codec.decode, probe).result()

    @staticmethod
    def _candidates(room: int, device: str, large: bool) -> list[Layout]:
        """Return layouts of at most `room` rows at a time, the reference first."""
        if device != "cpu":
            return [Layout(1 << power, 0) for power in range(max(1, min(room, 64)).bit_length())]
        if large:
            return [Layout(1, 0), Layout(1, cores())][: 1 if cores() == 1 or cores() > room else 2]
        side = [Layout(rows, min(cores(), max(1, room // rows))) for rows in (2, 4, 8)]
        wide = [Layout(rows, 0) for rows in (2, 8)] if cores() > 1 else []
        return side[:1] + [layout for layout in side[1:] + wide if layout.chunk <= room]
