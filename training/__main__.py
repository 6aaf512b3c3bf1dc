"""This file lets `python -m training` be `train`, for torchrun above all."""

from training.cli import main

main()
