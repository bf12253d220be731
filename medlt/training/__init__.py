"""The training loop of all networks, with exact resume, moving average, learning-rate schedules and `Runtime`."""
