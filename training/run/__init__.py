"""A run: its settings and folder, the training loop, checkpoints and resuming."""
