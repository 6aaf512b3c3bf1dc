"""The `pipeline` command line; each command's body calls one function of the package."""
