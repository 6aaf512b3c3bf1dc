"""Make the tables of a commit: positions of slices in their series, labels, patients and counts."""
