"""Placement of a backbone's network: device, precision and memory format; optionally compiled or as CUDA graphs.

Only the network changes. It receives x_t and conditions in its own precision and returns float32, so all arithmetic on
x0 stays float32. On a CPU each placement gives a row other bytes, but always the same ones
(`medlt.diffusion.batching`). Therefore the digest of the placed backbone includes its placement.
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
    """Return the fastest precision that the hardware supports.

    It is bfloat16 on devices with native support (AVX512-BF16, AMX, Ampere and later), else float16 on a GPU and
    float32 on a CPU. Nothing is measured.
    """
    if torch.device(device).type == "cuda":
        native = torch.cuda.get_device_capability(device)[0] >= 8
        return torch.bfloat16 if native else torch.float16
    supported: list[Callable[[], bool]] = [
        getattr(torch.cpu, name, lambda: False) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    return torch.bfloat16 if any(test() for test in supported) else torch.float32


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
    """Return the backbone with its network on `device` in `dtype` (None: `best_dtype`).

    The network is moved and cast in place, as by nn.Module.to; load it again for float32 weights. x_t and predictions
    keep their device and precision. On a CPU `rows` splits calls into parallel ones of that many rows on one thread
    each: with 1 the two halves of guidance on one image use two cores; 2 and 3 raise InputError, see
    `medlt.diffusion.batching`. `compile` is torch.compile; "measure" compiles at the first call and keeps the faster
    network. `cuda_graphs` records each shape of call once and replays it, which saves the launches of small networks.

    Raises InputError if the device does not exist, for CUDA graphs without CUDA, and for "measure" on a CPU, where the
    bytes would depend on the measured time.
    """
    target = torch.device(device)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device}: this machine has no CUDA device; use device cpu")
    if target.type == "cpu" and (cuda_graphs or compile == "measure"):
        what = "cuda_graphs" if cuda_graphs else "compile: measure"
        raise InputError(f"{what} needs an accelerator, and the device is a CPU; leave it off")
    if rows is not None and rows != 1 and rows < 4:
        raise InputError(
            f"rows {rows}: with 2 or 3 rows per call an image would depend on its position; use 1, or 4 or more"
        )
    kind = dtype or best_dtype(target)
    network = CastNetwork(backbone.network, target, kind, channels_last, rows)
    network.optimize(compile, cuda_graphs)
    placement = [str(kind), channels_last, rows, compile is True]
    plain = [str(torch.float32), False, None, False]
    named = backbone.digest if placement == plain else digest(backbone.digest, placement)
    return replace(backbone, network=network, digest=named)


class CastNetwork(nn.Module):
    """A network that runs in its own device, precision and memory format; its arguments and outputs keep theirs."""

    def __init__(
        self, network: nn.Module, device: torch.device, dtype: torch.dtype, channels_last: bool, rows: int | None = None
    ) -> None:
        super().__init__()
        layout = torch.channels_last if channels_last else torch.contiguous_format
        moved: Any = network.eval().to(device, dtype)
        self.network: nn.Module = moved.to(memory_format=layout)
        self.device, self.dtype, self.layout, self.rows = device, dtype, layout, rows
        self._call: Call = self.network

    def optimize(self, compile: Compile, cuda_graphs: bool) -> None:
        """Compile calls, record them as CUDA graphs, or both."""
        if compile:
            compiled: Call = torch.compile(self.network, dynamic=False)
            self._call = Faster(self.network, compiled) if compile == "measure" else compiled
        if cuda_graphs:
            self._call = Recorded(self._call)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction float32 [B,C,h,w] at x_t [B,C,h,w], timesteps t [B], conditions [B,...]."""
        grad = torch.is_grad_enabled()

        def call(x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
            with torch.set_grad_enabled(grad):  # grad mode is per thread, and a lane is another thread
                return self._cast(x_t, t, condition)

        if self.rows and self.device.type == "cpu":
            return fixed_batches(call, self.rows)(x_t, t, condition)
        return call(x_t, t, condition)

    def _cast(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        x = x_t.to(self.device, self.dtype, non_blocking=True).contiguous(memory_format=self.layout)
        dtype = self.dtype if condition.is_floating_point() else None
        condition = condition.to(self.device, dtype, non_blocking=True)
        out = self._call(x, t.to(self.device, non_blocking=True), condition)
        return out.to(x_t.device, torch.float32).contiguous()


class Faster:
    """Two implementations of the same function. Both are timed at the first call; later calls use the faster one."""

    def __init__(self, one: Call, other: Call) -> None:
        self.calls = [one, other]

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return the result of the faster implementation."""
        if len(self.calls) > 1:
            self.calls = [min(self.calls, key=lambda call: _seconds(call, x_t, t, condition))]
        return self.calls[0](x_t, t, condition)


def _seconds(call: Call, *tensors: Tensor) -> float:
    """Return the shortest time of three calls, after a first one that may compile."""
    times: list[float] = []
    for _ in range(4):
        began = time.perf_counter()
        call(*tensors)
        if tensors[0].device.type == "cuda":
            torch.cuda.synchronize(tensors[0].device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


class Recorded:
    """A function whose kernels are recorded as a CUDA graph, once for each shape, and replayed; without gradients."""

    def __init__(self, fn: Call) -> None:
        self.fn = fn
        self._graphs: dict[Any, tuple[Any, list[Tensor], Tensor]] = {}

    def __call__(self, *tensors: Tensor) -> Tensor:
        """Return fn(*tensors). With gradients enabled the call is not recorded."""
        if torch.is_grad_enabled():
            return self.fn(*tensors)
        key = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if key not in self._graphs:
            self._graphs[key] = self._record([tensor.clone() for tensor in tensors])
        graph, inputs, output = self._graphs[key]
        for buffer, given in zip(inputs, tensors, strict=True):
            buffer.copy_(given)
        graph.replay()
        return output.clone()

    def _record(self, inputs: list[Tensor]) -> tuple[Any, list[Tensor], Tensor]:
        """Warm up on a side stream, as capture requires, then capture. Other threads may use the device meanwhile."""
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.fn(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            output = self.fn(*inputs)
        return graph, inputs, output
