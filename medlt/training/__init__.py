"""One training loop for everything that is trained: exact resume, moving average, schedules, and where it runs."""
