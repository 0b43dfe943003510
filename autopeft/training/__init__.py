"""Training of one design on one device: plan, loop, checkpoints, measurements, and the worker that runs segments."""
