"""The forest plot of an experiment as one SVG file of its own, for a README or a slide."""

from __future__ import annotations

from pathlib import Path

from medlt.report.arms import Experiment, comparison_plot
from medlt.report.collect import Collected, collect
from medlt.report.formatting import environment


def draw(run: Collected) -> str:
    """The differences of tail macro AP of all arms, each to its control, as SVG text with a background of its own.

    Raises InputError where the folder holds no experiment.
    """
    plot = comparison_plot(Experiment.of(run))
    return environment().get_template("picture.svg.j2").render(plot=plot, verdict=run.verdict or {})


def forest_svg(folder: Path) -> str:
    """`draw` of a run folder. Raises InputError if it is none."""
    return draw(collect(Path(folder)))
