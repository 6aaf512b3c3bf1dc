"""Maintain a cache: report its contents, verify it, repair it, publish it, and remove what is unused."""
