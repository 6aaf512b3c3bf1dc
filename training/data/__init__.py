"""Read a cache: one commit with its table, the split, and the images as a stream of batches."""
