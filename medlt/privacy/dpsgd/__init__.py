"""Training under differential privacy (DP-SGD by unit), a strategy of the one training loop in `medlt.training`."""
