"""This package is what is learned: backbone and position, augmentation, loss, and the exported network."""
