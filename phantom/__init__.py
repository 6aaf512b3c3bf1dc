"""This package makes synthetic head CT studies with known findings."""
