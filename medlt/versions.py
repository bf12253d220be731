"""The versions that shape a result: Python's and those of the packages that compute it."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

PACKAGES = ("medlt", "torch", "monai", "diffusers", "accelerate", "pydicom", "numpy", "pandas", "scikit-learn")


@cache
def _installed() -> tuple[tuple[str, str], ...]:
    found = [("python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            found.append((name, "absent"))
    return tuple(found)


def versions() -> dict[str, str]:
    """Return Python's version and the packages'; 'absent' where one is not installed."""
    return dict(_installed())
