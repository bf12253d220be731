"""What this installation can do, for a bug report or before a long run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

from medlt.versions import versions

SYNTAXES = (
    "JPEGBaseline8Bit",
    "JPEGExtended12Bit",
    "JPEGLosslessSV1",
    "JPEGLSLossless",
    "JPEG2000Lossless",
    "RLELossless",
    "HTJ2KLossless",
)


def _dicom_decoders() -> dict[str, str]:
    """Which plugins can decode each compressed transfer syntax; 'none' where a package is missing."""
    from pydicom import uid
    from pydicom.pixels import get_decoder

    found = {}
    for name in SYNTAXES:
        plugins = get_decoder(getattr(uid, name)).available_plugins
        found[name] = ", ".join(plugins) or "none"
    return found


def _device() -> dict[str, Any]:
    import psutil
    import torch

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "cuda": cuda,
    }


def _network() -> dict[str, Any]:
    """medlt opens no connection by itself; these variables also hold back the hub client of diffusers."""
    return {name: os.environ.get(name, "not set") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}


def examine() -> dict[str, dict[str, Any]]:
    """Versions, device, DICOM decoders, offline state."""
    return {"versions": versions(), "device": _device(), "dicom": _dicom_decoders(), "offline": _network()}


def table(found: dict[str, dict[str, Any]]) -> Table:
    """The findings of `examine` as a rich table."""
    from rich.table import Table

    out = Table("", "what", "found", title="medlt doctor")
    for section, values in found.items():
        for i, (name, value) in enumerate(values.items()):
            out.add_row(section if i == 0 else "", name, str(value))
        out.add_section()
    return out
