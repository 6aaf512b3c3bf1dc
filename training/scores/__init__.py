"""This package turns probabilities and labels into scores, intervals and comparisons."""
