"""This package shows a run on one page, and writes its model card."""
