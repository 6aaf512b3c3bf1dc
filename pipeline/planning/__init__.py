"""Decide what to build and why: catalog, settings, stages, survey and plan."""
