"""This package holds what tests and benchmarks share: made-up inputs, faults, and histories to replay."""
