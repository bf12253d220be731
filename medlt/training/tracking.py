"""Records of a running training: curves by accelerate's trackers, and sample grids with a fixed seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor, nn

from medlt import processes
from medlt.files import atomic
from medlt.types import InputError

if TYPE_CHECKING:
    from medlt.training.checkpoint import State

Picture = Callable[[nn.Module], Tensor]
"""Function network -> images [N,1,H,W] in [0,1]; equal weights give equal images."""

Measure = Callable[[nn.Module], float]
"""Function network -> validation loss, or with `Training.patience` a score, where larger is better."""


def grid(images: Tensor, columns: int = 4) -> np.ndarray:
    """Return a grid, uint8 [rows H, columns W], of images [N,1,H,W] in [0,1], `columns` per row.

    Empty cells and NaN pixels are black.
    """
    pixels = (images[:, 0].nan_to_num(0.0).clamp(0, 1) * 255).round().byte().cpu().numpy()
    count, height, width = pixels.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, height, width), np.uint8)
    sheet[:count] = pixels
    return sheet.reshape(rows, columns, height, width).transpose(0, 2, 1, 3).reshape(rows * height, columns * width)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write samples, uint8 [H,W], as a PNG file whose text chunks say that they are synthetic, atomically."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    marks = PngInfo()
    marks.add_text("Description", "Synthetic samples of a generative model in training")
    marks.add_text("Synthetic", "true")
    with atomic(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=1, pnginfo=marks)


@dataclass(frozen=True)
class Track:
    """Writer of loss, validation loss, learning rate and sample grids of one training, to files and to a tracker.

    Without a folder nothing is written.
    """

    tracker: Literal["tensorboard"] | None
    evaluate: Measure | None
    picture: Picture | None
    name: str
    folder: Path | None

    def options(self) -> dict[str, Any]:
        """Return the tracker's keyword arguments of Accelerator. Raises InputError if the tracker is not installed."""
        if self.tracker is None or self.folder is None:
            return {}
        from accelerate.utils import is_tensorboard_available

        if not is_tensorboard_available():
            raise InputError("tracking with tensorboard needs the package; pip install 'medlt[tracking]'")
        return {"log_with": self.tracker, "project_dir": str(Path(self.folder) / "tracking")}

    def begin(self, accelerator: Any, step: int) -> None:
        """Open the tracker and remove what an interrupted run logged after its last checkpoint."""
        if self.tracker is not None and self.folder is not None:
            purge = {"purge_step": step + 1} if step else {}
            accelerator.init_trackers(self.name, init_kwargs={self.tracker: purge})

    def step(self, accelerator: Any, state: State, rate: float) -> None:
        """Log the loss and the learning rate of the last step."""
        if accelerator.trackers:
            accelerator.log({"loss": state.losses[-1], "learning rate": rate}, step=state.step)

    def measure(self, accelerator: Any, state: State) -> None:
        """Evaluate the averaged network and log its score."""
        if (evaluate := self.evaluate) is not None:
            state.record_score(processes.value(lambda: evaluate(state.network)))
            if accelerator.trackers:
                accelerator.log({"validation": state.validation[state.step]}, step=state.step)

    def write_samples(self, accelerator: Any, state: State) -> None:
        """Write the sample grid of the averaged network to samples/step_XXXXXX.png."""
        if self.picture is not None and self.folder is not None:
            sheet = grid(self.picture(state.network))
            write_png(Path(self.folder) / "samples" / f"step_{state.step:06d}.png", sheet)
            for tracker in accelerator.trackers:
                tracker.log_images({"samples": sheet[None, None]}, step=state.step)

    def end(self, accelerator: Any) -> None:
        """Close the tracker. Accelerate's own end_training would also destroy the process group."""
        for tracker in accelerator.trackers:
            tracker.finish()
