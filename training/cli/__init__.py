"""The `train` command: its subcommands and their options; `bodies` has the code that they run."""
