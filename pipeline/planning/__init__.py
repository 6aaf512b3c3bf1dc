"""Decide what to build and why: the catalog, the stages, what is there, the plan."""
