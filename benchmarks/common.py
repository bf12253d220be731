"""The parts that all benchmarks share: the machine, the versions, and the table with its command."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medlt.diffusion.backbone import Backbone

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """One line: processor kind, cores, versions."""
    kinds = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    kind = kinds[0] if kinds else platform.machine()
    return f"{kind}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {version('torch')}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def table(name: str, lines: list[str], folder: Path = RESULTS) -> None:
    """Print the result and keep it in FOLDER/NAME.md, with the machine and the command that made it."""
    arguments = ["FOLDER" if os.path.isabs(arg) else arg for arg in sys.argv[1:]]
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])
    text = "\n".join([f"# {name}", "", f"`{command}` on {machine()}", "", *lines, ""])
    print(text)
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.md").write_text(text)


def row_loss(backbone: Backbone, x: Tensor) -> Callable[[nn.Module, np.ndarray, torch.Generator], Tensor]:
    """The loss of each of some rows of latents x [N,C,h,w], as a private training takes it; for networks of x0."""
    abar, null = backbone.noise.abar(), backbone.condition.null

    def loss(network: nn.Module, rows: np.ndarray, draw: torch.Generator) -> Tensor:
        x0, t = x[torch.from_numpy(rows)], torch.randint(0, 1000, (len(rows),), generator=draw)
        a = abar[t].view(-1, 1, 1, 1)
        x_t = a.sqrt() * x0 + (1 - a).sqrt() * torch.randn(x0.shape, generator=draw)
        out: Tensor = network(x_t, t, null.expand(len(rows), -1))
        return (out - x0).square().flatten(1).mean(1)

    return loss


class Pixels:
    """8-bit images [N,S,S] as a data set of dicts uid, image [1,S,S] in [0,1]."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"uid": str(index), "image": torch.from_numpy(self.images[index])[None].float() / 255}
