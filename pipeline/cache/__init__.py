"""The cache on disk: its layout, its commits, and the order of writes that keeps it safe."""
