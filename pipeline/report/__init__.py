"""This package shows what is in a cache on one page."""
