"""The model: backbone and slice position, augmentation, loss, and export."""
