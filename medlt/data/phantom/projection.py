"""Projects path lengths to grey values: Beer-Lambert, scatter, Poisson noise, blur, logarithm, 12 bits.

I(x) = I0 exp(-sum_k mu_k L_k(x)), effective attenuation at about 65 keV in 1/cm; scatter is a wide blur of the primary
plus a floor (the share that passes a grid); noise is Poisson in photons per area, so it does not depend on the size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medlt.data.phantom.grid import Array
from medlt.data.phantom.scene import Scene

MU_WATER = 0.19
MU_LUNG = 0.05
MU_BONE = 0.52
LOW, SPAN, TOP = 640, 2700, 4095
"""Stored value of the darkest lung, grey steps to the brightest tissue, and the largest 12-bit value."""


@dataclass(frozen=True)
class Exposure:
    """One exposure and its processing."""

    photons: float
    """Per mm^2, in the open beam."""
    scatter: float
    """Scatter-to-primary ratio in the lung."""
    flatten: float
    """Share of the coarse contrast that processing removes, 0..1."""
    window: tuple[float, float]
    """Start and end of the display window, as shares of SPAN from LOW."""
    gamma: float

    @classmethod
    def draw(cls, view: str, rng: np.random.Generator) -> Exposure:
        """Draw an exposure; portable films get fewer photons and more scatter."""
        exposure, scatter, flatten, dark, bright, gamma = rng.random(6).tolist()
        portable = view == "AP"
        return cls(
            photons=(4.0e3 if portable else 1.2e4) * 2 ** (2 * exposure - 1),
            scatter=(0.55 if portable else 0.3) + 0.4 * scatter,
            flatten=0.2 + 0.35 * flatten,
            window=(-0.16 + 0.14 * dark, 1.02 + 0.2 * bright),
            gamma=0.85 + 0.35 * gamma,
        )


def attenuation(scene: Scene) -> Array:
    """Return the optical depth along the beam, without unit."""
    displaced = np.clip(scene.lung * (1 - scene.aeration) + scene.vessels + scene.solid, 0, scene.lung)
    tissue = np.maximum(scene.body - scene.lung - scene.gas, 0) + displaced
    bone = scene.bone * np.minimum(scene.body, 1)
    return np.asarray(
        MU_WATER * tissue + MU_LUNG * (scene.lung - displaced) + (MU_BONE - MU_WATER) * bone + scene.metal
    )


def expose(scene: Scene, exposure: Exposure, rng: np.random.Generator) -> Array:
    """Return the negative logarithm of the detector signal: large where the patient is dense."""
    grid = scene.grid
    primary = grid.blur(np.exp(-attenuation(scene)), 0.05)
    scattered = exposure.scatter * grid.blur(primary, 4.5) + 0.004
    photons = exposure.photons * (10 * grid.spacing) ** 2
    counts = rng.poisson(photons * (primary + scattered)).astype(np.float32)
    return np.asarray(-np.log((grid.blur(counts, 0.4 * grid.spacing) + 1) / photons))


def develop(signal: Array, scene: Scene, exposure: Exposure) -> NDArray[np.uint16]:
    """Return 12-bit values, dense = bright, scaled by the lung and the mediastinum as in a digital system."""
    flat = signal - exposure.flatten * scene.grid.blur(signal, 3.0)
    trunk = flat[::3, ::3][(scene.body > 8)[::3, ::3]]
    low, high = np.percentile(trunk, (2, 99))
    tone = np.maximum((flat - low) / max(float(high - low), 1e-3), -0.3)
    curved = np.sign(tone) * np.abs(tone) ** exposure.gamma
    return np.asarray(np.clip(np.round(LOW + SPAN * curved), 0, TOP), np.uint16)


def window(exposure: Exposure) -> tuple[int, int]:
    """Return the display window (centre, width), DICOM (0028,1050) and (0028,1051)."""
    start, end = (LOW + SPAN * share for share in exposure.window)
    return round((start + end) / 2), round(end - start)


def display(pixels: NDArray[np.uint16], centre: int, width: int) -> Array:
    """Return pixels through the window, in [0,1]: the LINEAR function of DICOM PS3.3 C.11.2.1.2.1."""
    shown = (pixels.astype(np.float32) - (centre - 0.5)) / (width - 1) + 0.5
    return np.asarray(np.clip(shown, 0, 1), np.float32)
