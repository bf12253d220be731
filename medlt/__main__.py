"""Runs the command line: `python -m medlt` is the same as `medlt`."""

from medlt.cli import app

app(prog_name="medlt")
