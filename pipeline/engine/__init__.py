"""Run a build and its tasks, in this process, on local workers or on a Dask cluster."""
