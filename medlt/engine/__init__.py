"""Engines: tasks in worker processes of this machine, or on a Ray cluster; each worker builds its function once.

The results do not depend on the engine, on the number of workers, or on workers that are lost on the way.
"""

from medlt.engine.choice import EngineChoice, ready, run_tasks
from medlt.engine.pool import Pool, worker_environment

__all__ = ["EngineChoice", "Pool", "ready", "run_tasks", "worker_environment"]
