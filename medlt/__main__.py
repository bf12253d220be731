"""`python -m medlt` is `medlt`."""

from medlt.cli import app

app()
