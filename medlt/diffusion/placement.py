"""Where and how the network of a backbone runs: device, precision, memory format; compiled or recorded on request.

The network alone changes. It is handed x_t and conditions in its own precision and answers in float32, so that all
arithmetic on x0 stays float32. On a CPU each way of running gives a row other bytes, though always the same ones
(`medlt.diffusion.batching`); so the digest of the placed backbone says which way it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medlt.diffusion.backbone import Backbone
from medlt.diffusion.batching import fixed_batches
from medlt.files import digest
from medlt.types import InputError

Call = Callable[[Tensor, Tensor, Tensor], Tensor]
Compile = bool | Literal["measure"]


def best_dtype(device: str | torch.device) -> torch.dtype:
    """The fastest precision this device is built for: bfloat16 if it multiplies it itself (AVX512-BF16, AMX, Ampere and
    later), else float16 on a GPU and float32 on a CPU. A function of the hardware, not of a measurement."""
    if torch.device(device).type == "cuda":
        native = torch.cuda.get_device_capability(device)[0] >= 8
        return torch.bfloat16 if native else torch.float16
    has: list[Callable[[], bool]] = [
        getattr(torch.cpu, name, lambda: False) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    return torch.bfloat16 if any(look() for look in has) else torch.float32


def place(
    backbone: Backbone,
    *,
    device: str | torch.device,
    dtype: torch.dtype | None = None,
    channels_last: bool = True,
    rows: int | None = None,
    compile: Compile = False,
    cuda_graphs: bool = False,
) -> Backbone:
    """The backbone with its network on `device` in `dtype` (None: `best_dtype`), x_t and answers as they were.

    The network is moved and cast in place, as nn.Module.to does: load it again for float32 weights. `rows` cuts the
    calls on a CPU into ones of that many rows on one thread each, side by side: with 1 the two halves of guidance on
    one image fill two cores; 2 and 3 are refused, see `medlt.diffusion.batching`. `compile` is torch.compile;
    "measure" compiles at the first call and keeps the faster of both. `cuda_graphs` records each shape of call once
    and replays it, which spares the launches of small networks.

    Raises InputError: no such device, CUDA graphs without CUDA, or a measured choice on a CPU, whose bytes would
    depend on the stopwatch.
    """
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device}: there is no CUDA device here; use device cpu")
    if where.type == "cpu" and (cuda_graphs or compile == "measure"):
        what = "cuda_graphs" if cuda_graphs else "compile: measure"
        raise InputError(f"{what} is for accelerators, and this is a CPU; leave it off")
    if rows is not None and rows != 1 and rows < 4:
        raise InputError(
            f"rows {rows}: with 2 or 3 rows a call an image would depend on its place; use 1, or 4 or more"
        )
    kind = dtype or best_dtype(where)
    network = Placed(backbone.network, where, kind, channels_last, rows)
    network.arrange(compile, cuda_graphs)
    way = [str(kind), channels_last, rows, compile is True]
    plain = [str(torch.float32), False, None, False]
    named = backbone.digest if way == plain else digest(backbone.digest, way)
    return replace(backbone, network=network, digest=named)


class Placed(nn.Module):
    """A network called in its own precision and memory format; arguments and answer stay where and as they were."""

    def __init__(
        self, network: nn.Module, device: torch.device, dtype: torch.dtype, channels_last: bool, rows: int | None = None
    ) -> None:
        super().__init__()
        layout = torch.channels_last if channels_last else torch.contiguous_format
        moved: Any = network.eval().to(device, dtype)
        self.network: nn.Module = moved.to(memory_format=layout)
        self.device, self.dtype, self.layout, self.rows = device, dtype, layout, rows
        self._call: Call = self.network

    def arrange(self, compile: Compile, cuda_graphs: bool) -> None:
        """Have calls compiled, recorded, or both."""
        if compile:
            compiled: Call = torch.compile(self.network, dynamic=False)
            self._call = Faster(self.network, compiled) if compile == "measure" else compiled
        if cuda_graphs:
            self._call = Recorded(self._call)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Prediction float32 [B,C,h,w] at x_t [B,C,h,w], timesteps t [B], conditions [B,...]."""
        learns = torch.is_grad_enabled()

        def call(x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
            with torch.set_grad_enabled(learns):  # a lane is another thread, with a switch of its own
                return self._cast(x_t, t, condition)

        if self.rows and self.device.type == "cpu":
            return fixed_batches(call, self.rows)(x_t, t, condition)
        return call(x_t, t, condition)

    def _cast(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        x = x_t.to(self.device, self.dtype, non_blocking=True).contiguous(memory_format=self.layout)
        said = condition.to(self.device, self.dtype if condition.is_floating_point() else None, non_blocking=True)
        return self._call(x, t.to(self.device, non_blocking=True), said).to(x_t.device, torch.float32).contiguous()


class Faster:
    """Two ways to compute the same: each is timed at the first call, and the faster one goes on."""

    def __init__(self, one: Call, other: Call) -> None:
        self.ways = [one, other]

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """What either way says."""
        if len(self.ways) > 1:
            self.ways = [min(self.ways, key=lambda way: _seconds(way, x_t, t, condition))]
        return self.ways[0](x_t, t, condition)


def _seconds(way: Call, *tensors: Tensor) -> float:
    """The best of three calls on an accelerator, after a first one that may compile."""
    found: list[float] = []
    for _ in range(4):
        began = time.perf_counter()
        way(*tensors)
        if tensors[0].device.type == "cuda":
            torch.cuda.synchronize(tensors[0].device)
        found.append(time.perf_counter() - began)
    return min(found[1:])


class Recorded:
    """The kernels of a call, recorded once for each shape as a CUDA graph and replayed; without gradients."""

    def __init__(self, fn: Call) -> None:
        self.fn = fn
        self._known: dict[Any, tuple[Any, list[Tensor], Tensor]] = {}

    def __call__(self, *tensors: Tensor) -> Tensor:
        """What fn says. A call that keeps gradients is not recorded."""
        if torch.is_grad_enabled():
            return self.fn(*tensors)
        key = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if key not in self._known:
            self._known[key] = self._record([tensor.clone() for tensor in tensors])
        graph, held, answer = self._known[key]
        for inside, given in zip(held, tensors, strict=True):
            inside.copy_(given)
        graph.replay()
        return answer.clone()

    def _record(self, held: list[Tensor]) -> tuple[Any, list[Tensor], Tensor]:
        """Warm up on a side stream, as capture demands, then capture; other threads may use the device meanwhile."""
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.fn(*held)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            answer = self.fn(*held)
        return graph, held, answer
