"""Turn probabilities and labels into scores, intervals and comparisons."""
