"""Show what is in a cache on one page."""
