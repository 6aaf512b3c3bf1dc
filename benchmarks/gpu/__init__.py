"""Measure the trainer on a GPU in minutes; each part is a function that also runs on a CPU at a small size."""
