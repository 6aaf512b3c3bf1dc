"""Let `python -m training` be `train`, for torchrun above all."""

from training.cli.main import main

main()
