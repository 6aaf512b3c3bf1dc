"""Look after a cache: say what is in it, verify, repair and collect."""
