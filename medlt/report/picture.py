"""The forest plot of an experiment as one SVG file, for a README or a slide."""

from __future__ import annotations

from medlt.report import summary
from medlt.report.arms import Experiment, comparison_plot
from medlt.report.collect import Collected
from medlt.report.formatting import environment


def draw(run: Collected) -> str:
    """Return the differences of the verdict's metric of all arms to their controls, as SVG text with a background.

    Raises InputError if the folder holds no experiment.
    """
    experiment = Experiment.of(run)
    plot = comparison_plot(experiment)
    return (
        environment()
        .get_template("picture.svg.j2")
        .render(plot=plot, metric=experiment.metric, verdict=run.verdict or {}, patients=summary.patients(run))
    )
