"""The bodies of the commands: what each does, imported when it runs."""
