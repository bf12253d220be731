"""Progress of long work: bars on a terminal, timestamped lines elsewhere, and run.log in the run folder always.

A callback is called as progress(stage, done, total) (`medlt.types.Progress`). It also receives the stages of a recipe,
which have a beginning and an end but no count, and notes.
"""

from medlt.progress.bars import Bars
from medlt.progress.callback import ProgressCallback
from medlt.progress.lines import Lines, duration, ticking
from medlt.progress.run_log import RunLog

__all__ = ["Bars", "Lines", "ProgressCallback", "RunLog", "duration", "ticking"]
