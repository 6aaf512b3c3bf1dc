"""Monitor a run: read losses from the device at intervals, log them, and stop the run if they are not finite."""

import math
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.data.neighbours import SERIES
from training.errors import RunError, TrainingError
from training.run.checkpoints import Checkpoint, CheckpointWriter, Progress
from training.run.config import TrainConfig
from training.run.inference import Stopped
from training.run.log import Log
from training.run.loggers import Loggers
from training.run.tables import write_table
from training.run.task import Task

# Steps to skip, while caches, kernels and compilers warm up, and steps to time.
WARM_UP_STEPS, TIMED_STEPS = 3, 10
EVALUATED_SHARE = 1 / 3  # of the training time of an image: one forward pass, without a backward pass of twice its cost


def epoch_costs(config: TrainConfig) -> np.ndarray:
    """Return the relative time of a step in each epoch, (epochs,) float64: 1 if the backbone is trained.

    A frozen backbone takes only a forward pass.
    """
    return np.where(np.arange(config.epochs) < config.frozen_epochs, EVALUATED_SHARE, 1.0)


class Watch:
    """Keeps the loss and gradient norm of each step on the device until they are read.

    Reading them waits for the device, so it is done every `log_every` steps, before a checkpoint, and at the end of an
    epoch.
    """

    def __init__(
        self,
        task: Task,
        progress: Progress,
        total_steps: int,
        *,
        loggers: Sequence[str] = (),
        num_validation: int = 0,
    ) -> None:
        """Open log.csv and the named trackers at the run's current progress, in the process that writes.

        Args:
            num_validation: number of slices, or of series for a head, evaluated after each epoch, for time estimates.
        """
        run, processes = task.run, task.processes
        self._run, self._cache, self._processes = run, task.cache, processes
        self._steps: list[dict[str, float]] = []
        self._values: list[Tensor] = []  # (2,) loss and gradient norm of each step
        self._lines: list[list[Tensor]] = [[]]  # the slices of each step, the last one in progress
        self._images, self._since = 0, time.perf_counter()
        self._began, self._first_epoch, self._epoch_losses = time.perf_counter(), progress.epoch, list[float]()
        self._seen, self._num_validation, self._total_steps = 0, num_validation, total_steps
        self._log = Log(run.log, progress.log_bytes) if processes.writes else None
        self._loggers = Loggers(run, loggers, progress.step) if processes.writes else None
        self._writer = CheckpointWriter()
        self._bar = tqdm(
            total=total_steps,
            initial=progress.step,
            unit="step",
            desc="train",
            disable=None if processes.writes else True,
        )

    def __enter__(self) -> "Watch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        try:
            with ExitStack() as closing:  # in reverse order, each even if another fails
                if self._log and self._loggers:
                    closing.callback(self._loggers.close)
                    closing.callback(self._log.close)
                closing.callback(self._writer.close)
        except TrainingError:
            if kind is None or issubclass(kind, Stopped):  # otherwise the first error is more informative
                raise

    def save(self, checkpoint: Checkpoint, keep: int, *, best: bool = False) -> None:
        """Write a checkpoint in the background, after flushing the log up to this point.

        Errors are raised by the next call, or at the end.

        Args:
            checkpoint: to write.
            keep: number of most recent checkpoints to keep.
            best: whether its weights are the best so far, and are saved as such.
        """
        if self._log is not None:
            checkpoint.progress.log_bytes = self._log.flush()
            self._writer.save(self._run, checkpoint, keep, log=self._log, best=best)

    @property
    def shows_images(self) -> bool:
        """Whether a tracker in this process accepts images."""
        return self._loggers is not None and self._loggers.show_images

    def show(self, name: str, images: np.ndarray) -> None:
        """Log images, (B, C, S, S) uint8 with 1 or 3 channels, to the trackers that accept them."""
        if self._loggers is not None:
            self._loggers.show(name, images)

    def record_batch(self, lines: Tensor, images: int) -> None:
        """Record the slices in this process's part of a batch, and the number of images in the global batch."""
        self._lines[-1].append(lines.clone())  # the ring reuses its memory
        self._images += images

    def record_step(self, progress: Progress, rate: float, loss: Tensor, gradient_norm: Tensor) -> None:
        """Record a step's loss and gradient norm, scalars on the device, without waiting for them."""
        self._steps.append({"step": progress.step, "epoch": progress.epoch, "learning_rate": rate})
        self._values.append(torch.stack([loss.detach().float(), gradient_norm.detach().float()]))
        self._lines.append([])
        self._bar.update()
        self._seen += 1
        if self._seen == WARM_UP_STEPS:
            self.log_pending()
            self._warm = time.perf_counter()
        elif self._seen == WARM_UP_STEPS + TIMED_STEPS:
            self.log_pending()
            self._print_estimate(progress, (time.perf_counter() - self._warm) / TIMED_STEPS)

    def log_pending(self) -> None:
        """Read and log everything recorded since the last call.

        Raises:
            RunError: if a loss or a gradient was not finite. The weights are still those from before that step, and its
                slices are listed in `nonfinite.csv`.
        """
        if not self._steps:
            return
        values = torch.stack(self._values).cpu().tolist()
        seconds = time.perf_counter() - self._since
        for i, (loss, norm) in enumerate(values):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._stop(self._steps[i]["step"], loss, norm, self._lines[i])
        self._epoch_losses += [loss for loss, _ in values]
        if self._log and self._loggers:
            speed = {"images_per_s": round(self._images / seconds, 1), "seconds": round(seconds, 3)}
            lines = [
                step | {"loss": loss, "gradient_norm": norm}
                for step, (loss, norm) in zip(self._steps, values, strict=True)
            ]
            lines[-1] |= speed
            for line in lines:
                self._log.write(split="train", **line)
            self._loggers.log(lines)
            self._bar.set_postfix(loss=f"{values[-1][0]:.4f}", refresh=False)
        self._steps, self._values, self._lines = [], [], [self._lines[-1]]
        self._images, self._since = 0, time.perf_counter()

    def record_validation(self, progress: Progress, weighted_log_loss: float) -> None:
        """Log the validation score of an epoch."""
        if self._log and self._loggers:
            line = {"step": progress.step, "epoch": progress.epoch, "weighted_log_loss": weighted_log_loss}
            self._log.write(split="validation", **line)
            self._loggers.log([line])
        self._since = time.perf_counter()

    def _print_estimate(self, progress: Progress, step_s: float) -> None:
        """Print the remaining time at this pace, unless an epoch has ended, which prints its own estimate."""
        if not self._processes.writes or progress.epoch != self._first_epoch:
            return
        config = self._run.config
        costs, in_an_epoch = epoch_costs(config)[progress.epoch :], self._total_steps / config.epochs
        done = progress.step - progress.epoch * in_an_epoch
        in_a_step = config.batch_size * config.accumulation
        evaluated = len(costs) * self._num_validation / in_a_step * EVALUATED_SHARE
        left = step_s / costs[0] * (costs.sum() * in_an_epoch - done * costs[0] + evaluated)
        _print(f"{step_s:.3g} s per step: about {duration(left)} left, if all epochs are needed")

    def print_epoch(self, progress: Progress, weighted_log_loss: float | None) -> None:
        """Print a line about the finished epoch: its losses and the remaining time.

        Args:
            progress: of the run.
            weighted_log_loss: on the validation set; None if there is none.
        """
        trained, self._epoch_losses = self._epoch_losses, []
        if not self._processes.writes:
            return
        parts = [f"training loss {np.mean(trained):.4f}"] if trained else []  # none if the epoch was only scored
        if weighted_log_loss is not None:
            parts.append(f"validation log loss {weighted_log_loss:.4f}")
        epochs, done = self._run.config.epochs, progress.epoch + 1
        costs = epoch_costs(self._run.config)
        left = (time.perf_counter() - self._began) / costs[self._first_epoch : done].sum() * costs[done:].sum()
        if left:
            parts.append(f"about {duration(left)} left")
        _print(f"epoch {done} of {epochs}: {', '.join(parts)}")

    def _stop(self, step: float, loss: float, norm: float, lines: list[Tensor]) -> None:
        """Write a list of the slices in the step, from all processes, and raise a RunError."""
        everyone = self._processes.gather(torch.cat(lines).cpu().numpy())
        table = self._cache.table.iloc[np.concatenate(everyone)]
        path = self._run.path / "nonfinite.csv"
        if self._processes.writes:
            write_table(path, table[["row", "image_id", *SERIES, "frame"]])
        raise RunError(
            f"{self._run.path}: step {step:.0f}: the loss ({loss:g}) or the gradient (norm {norm:g}) is not finite; "
            f"the weights were not changed; its slices are listed in {path}; look at them, or start again with a lower "
            "--lr"
        )


def _print(line: str) -> None:
    """Print a line without breaking the progress bar, and flush it, since output to a pipe is buffered."""
    tqdm.write(line)
    sys.stdout.flush()


def duration(seconds: float) -> str:
    """Return a duration as text, to the second or the minute."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"
