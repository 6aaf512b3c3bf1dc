"""The code of each command, which is imported only when the command runs."""
