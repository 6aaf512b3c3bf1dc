"""Made-up inputs, injected faults and histories to replay, shared by tests and benchmarks."""
