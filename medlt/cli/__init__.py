"""The command line: a thin edge over the recipes. Heavy imports live inside the commands.

Exit codes: 0 all done, 1 done with some failures listed, 2 nothing done (bad input or usage), 130 interrupted,
143 terminated.
"""

from medlt.cli import checks, collections, configs, conversion, deidentified, initial, recipes, releases, reviews, runs
from medlt.cli.app import app

__all__ = [
    "app",
    "checks",
    "collections",
    "configs",
    "conversion",
    "deidentified",
    "initial",
    "recipes",
    "releases",
    "reviews",
    "runs",
]
