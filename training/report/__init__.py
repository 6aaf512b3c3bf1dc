"""Show a run on one page, and write its model card."""
