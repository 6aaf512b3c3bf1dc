"""A run: its settings and folder, the training loop, and what keeps it resumable."""
