"""Read a cache: one commit, its table and split, and its images as a stream of batches."""
