"""The on-disk cache: its layout, its commits, and the order of writes that keeps it consistent."""
