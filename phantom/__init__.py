"""Make synthetic head CT studies with known findings."""
