"""The HTML report of a cache."""
