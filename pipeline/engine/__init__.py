"""Run tasks: in a plain loop, on local processes, or on any Dask cluster."""
