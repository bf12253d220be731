"""Small real Stable Diffusion folders, and diffusers' own pipeline of each as the oracle."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medlt.diffusion.stable.untrained import untrained

SMALL: dict[str, dict[str, Any]] = {
    "1.5": {"widths": (32, 64), "layers": 1, "text_width": 32, "text_layers": 2, "vae": (32, 32)},
    "2.1": {"widths": (64, 128), "layers": 1, "text_width": 64, "text_layers": 2, "vae": (32, 32)},
}


@pytest.fixture(scope="session", params=["1.5", "2.1"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole folder in the format of either version; not to be written to."""
    return untrained(tmp_path_factory.mktemp("sd") / "model", version=request.param, **SMALL[request.param])


@pytest.fixture(scope="session")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole folder in the format of 1.5; not to be written to."""
    return untrained(tmp_path_factory.mktemp("sd15") / "model", version="1.5", **SMALL["1.5"])


@pytest.fixture
def copy(sd15: Path, tmp_path: Path) -> Path:
    """A copy of it, to break."""
    return Path(shutil.copytree(sd15, tmp_path / "model"))


@pytest.fixture(scope="session")
def pipeline() -> Callable[[Path], Any]:
    """diffusers' own pipeline of a folder."""

    def opened(folder: Path, **changes: Any) -> Any:
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import logging as diffusers_log
        from transformers.utils import logging as transformers_log

        diffusers_log.disable_progress_bar()
        transformers_log.disable_progress_bar()
        pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, **changes)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return opened


@pytest.fixture
def asked() -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy latents [2,4,16,16] and timesteps [2]."""
    return torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 900])
