"""Configure PyTorch for a device, in the same way for training, evaluation and prediction."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from training.errors import ConfigError, RunError
from training.run.config import TrainConfig

# Parts of the messages of CUDA, cuBLAS and cuDNN when their own allocations fail.
NO_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def configure_device(config: TrainConfig, device: torch.device) -> None:
    """Set PyTorch's flags according to a run's settings; they have no effect on a CPU.

    TF32 keeps PyTorch's defaults: on for cuDNN convolutions, off for matrix products. With bf16 neither is used.

    Raises:
        ConfigError: if `compile` and `deterministic` are both set, but this PyTorch cannot compile deterministic code.
    """
    deterministic = config.deterministic and device.type == "cuda"
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if config.compile:
            _compile_deterministic_code()
    torch.use_deterministic_algorithms(deterministic)
    # Filling memory that is overwritten anyway costs a tenth of a step and does not affect the result.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not config.deterministic


def _compile_deterministic_code() -> None:
    from torch._inductor import config as inductor

    if not hasattr(inductor, "deterministic"):
        raise ConfigError(
            "deterministic, compile: this PyTorch chooses kernels by timing them, so runs would not be reproducible; "
            "leave --compile out, or install PyTorch 2.10 or newer"
        )
    inductor.deterministic = True


@contextmanager
def missing_determinism_explained(config: TrainConfig) -> Iterator[None]:
    """Turn the error of an operation without a deterministic form into a one-line error that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = str(error).splitlines()[0].split(". ")[0]
        raise RunError(
            f"deterministic: --model {config.model} has an operation that is not deterministic ({reason}); choose "
            "another model, or leave deterministic off"
        ) from error


@contextmanager
def single_values_explained(config: TrainConfig) -> Iterator[None]:
    """Turn the error of batch norm on a single value per channel into a one-line error that says what to do.

    It occurs when a process has one image, which the network reduces to one pixel.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise RunError(
            f"--model {config.model}: at {config.size_px} px a single image leaves batch norm one value per channel, "
            f"and a batch of {config.batch_size} gives some process a single image; set a larger --batch-size, or "
            "--size"
        ) from error


@contextmanager
def memory_error_explained(config: TrainConfig, run: Path) -> Iterator[None]:
    """Turn an out-of-memory error into a one-line error that gives the batch size and says what to set."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(word in str(error) for word in NO_MEMORY):
            raise
        smaller, more = max(1, config.batch_size // 2), config.accumulation * 2
        remedy = f"start again with --batch-size {smaller} --set accumulation={more}, for steps of the same size"
        raise RunError(
            f"{run}: out of GPU memory at a batch size of {config.batch_size} with {config.model} at "
            f"{config.size_px} px; {remedy}"
        ) from error
