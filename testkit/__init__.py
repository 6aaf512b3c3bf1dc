"""Synthetic inputs, injected faults and random histories, shared by tests and benchmarks."""
