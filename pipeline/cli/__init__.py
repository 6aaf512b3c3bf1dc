"""The `pipeline` command: each module holds commands, and their bodies call one function."""
