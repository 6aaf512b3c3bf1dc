"""This package looks after a cache: says what is in it, verifies, repairs and collects."""
