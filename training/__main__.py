"""Run the `train` command as `python -m training`, mainly for torchrun."""

from training.cli.main import main

main()
