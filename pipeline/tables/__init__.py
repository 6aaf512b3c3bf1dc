"""Make a commit's tables: where each slice lies in its series, its labels, the accounting."""
