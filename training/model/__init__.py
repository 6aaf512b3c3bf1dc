"""The model: backbone and position, augmentation, loss, and the exported network."""
