"""Synthetic head CT studies with known bleeds."""
