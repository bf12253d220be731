"""The versions that affect a result: Python and the packages that compute it."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

PACKAGES = ("medlt", "torch", "monai", "diffusers", "accelerate", "pydicom", "numpy", "pandas", "scikit-learn")


@cache
def _installed() -> tuple[tuple[str, str], ...]:
    installed = [("python", platform.python_version())]
    for name in PACKAGES:
        try:
            installed.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            installed.append((name, "absent"))
    return tuple(installed)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages; 'absent' for a package that is not installed."""
    return dict(_installed())
