"""Synthetic radiographs: a parametric thorax, nine findings and a long tail, written as DICOM."""

from medlt.data.phantom.cohort import COMMON_TO_RARE, NO_FINDING, cohort
from medlt.data.phantom.render import FINDINGS, Film, film, render
from medlt.data.phantom.write import write_phantom

__all__ = ["COMMON_TO_RARE", "FINDINGS", "NO_FINDING", "Film", "cohort", "film", "render", "write_phantom"]
