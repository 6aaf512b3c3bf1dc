"""Watch a run: read losses off the device now and then, log them, and stop a run gone bad."""

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

from training.data.cache import Cache
from training.data.neighbours import SERIES
from training.errors import RunError, TrainingError
from training.run.checkpoints import Checkpoint, CheckpointWriter, Progress
from training.run.config import TrainConfig
from training.run.distributed import Processes
from training.run.inference import Stopped
from training.run.log import Log
from training.run.loggers import Loggers
from training.run.runs import Run
from training.run.tables import write_table

# The steps after which the time of one is known: the first ones warm up caches, kernels and compilers.
WARM_UP_STEPS, TIMED_STEPS = 3, 10
EVALUATED_SHARE = 1 / 3  # of the time of an image that is trained on: its forward pass, without the two backward


def epoch_costs(config: TrainConfig) -> np.ndarray:
    """Return how long a step of each epoch takes, (epochs,) float64, 1 where the backbone learns.

    Where it is frozen it is only run forward.
    """
    return np.where(np.arange(config.epochs) < config.frozen_epochs, EVALUATED_SHARE, 1.0)


class Watch:
    """Keeps each step's loss and gradient norm on the device until someone looks.

    A look waits for the device, so it comes every `log_every` steps, before a checkpoint, and at an epoch's end.
    """

    def __init__(
        self,
        run: Run,
        cache: Cache,
        processes: Processes,
        progress: Progress,
        total_steps: int,
        *,
        loggers: Sequence[str] = (),
        num_validation: int = 0,
    ) -> None:
        """Open log.csv and trackers, by name, where the run stands; only the writing process has them.

        Args:
            num_validation: what is evaluated after an epoch, for the estimate of the time: slices, of a head series.
        """
        self._run, self._cache, self._processes = run, cache, processes
        self._steps: list[dict[str, float]] = []
        self._values: list[Tensor] = []  # (2,) loss and gradient norm of each step
        self._lines: list[list[Tensor]] = [[]]  # the slices of each step, and of the one under way
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
            with ExitStack() as closing:  # the last first, each whatever becomes of the others
                if self._log and self._loggers:
                    closing.callback(self._loggers.close)
                    closing.callback(self._log.close)
                closing.callback(self._writer.close)
        except TrainingError:
            if kind is None or issubclass(kind, Stopped):  # else the first error says more
                raise

    def save(self, checkpoint: Checkpoint, keep: int, *, best: bool = False) -> None:
        """Have a checkpoint written while the run goes on, with the log up to here before it.

        A later call, or the end, raises what went wrong.

        Args:
            best: whether its weights are the best so far, and are kept.
        """
        if self._log is not None:
            checkpoint.progress.log_bytes = self._log.flush()
            self._writer.save(self._run, checkpoint, keep, log=self._log, best=best)

    @property
    def shows_images(self) -> bool:
        """Whether somebody is told of images: a tracker of the writing process."""
        return self._loggers is not None and self._loggers.show_images

    def show(self, name: str, images: np.ndarray) -> None:
        """Give images, (B, C, S, S) uint8 with 1 or 3 channels, to the trackers that take them."""
        if self._loggers is not None:
            self._loggers.show(name, images)

    def saw_batch(self, lines: Tensor, images: int) -> None:
        """Note which slices this process's part of a batch has, and how many images the whole batch."""
        self._lines[-1].append(lines.clone())  # the ring takes its memory back
        self._images += images

    def saw_step(self, progress: Progress, rate: float, loss: Tensor, gradient_norm: Tensor) -> None:
        """Note a step's loss and gradient norm, scalars on the device, without waiting for them."""
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
            self._say_estimate(progress, (time.perf_counter() - self._warm) / TIMED_STEPS)

    def log_pending(self) -> None:
        """Read everything noted since the last look, and log it.

        Raises:
            RunError: a loss or a gradient was not finite. The weights are still those before that step; its slices
                are in `nonfinite.csv`.
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

    def saw_validation(self, progress: Progress, weighted_log_loss: float) -> None:
        """Log an epoch's score on validation."""
        if self._log and self._loggers:
            line = {"step": progress.step, "epoch": progress.epoch, "weighted_log_loss": weighted_log_loss}
            self._log.write(split="validation", **line)
            self._loggers.log([line])
        self._since = time.perf_counter()

    def _say_estimate(self, progress: Progress, step_s: float) -> None:
        """Print how long the rest will take at this pace; where an epoch ended meanwhile its own line has said it."""
        if not self._processes.writes or progress.epoch != self._first_epoch:
            return
        config = self._run.config
        costs, in_an_epoch = epoch_costs(config)[progress.epoch :], self._total_steps / config.epochs
        done = progress.step - progress.epoch * in_an_epoch
        in_a_step = config.batch_size * config.accumulation
        evaluated = len(costs) * self._num_validation / in_a_step * EVALUATED_SHARE
        left = step_s / costs[0] * (costs.sum() * in_an_epoch - done * costs[0] + evaluated)
        _say(f"{step_s:.3g} s per step: about {duration(left)} left, if all epochs are needed")

    def say_epoch(self, progress: Progress, weighted_log_loss: float | None) -> None:
        """Print a line on the epoch that ends: its losses, and how long the rest will take.

        Args:
            weighted_log_loss: on validation; None where there is no validation set.
        """
        trained, self._epoch_losses = self._epoch_losses, []
        if not self._processes.writes:
            return
        said = [f"training loss {np.mean(trained):.4f}"] if trained else []  # none in an epoch that was only scored
        if weighted_log_loss is not None:
            said.append(f"validation log loss {weighted_log_loss:.4f}")
        epochs, done = self._run.config.epochs, progress.epoch + 1
        costs = epoch_costs(self._run.config)
        left = (time.perf_counter() - self._began) / costs[self._first_epoch : done].sum() * costs[done:].sum()
        if left:
            said.append(f"about {duration(left)} left")
        _say(f"epoch {done} of {epochs}: {', '.join(said)}")

    def _stop(self, step: float, loss: float, norm: float, lines: list[Tensor]) -> None:
        """Save the slices of the step, of all processes, and raise."""
        everyone = self._processes.gather(torch.cat(lines).cpu().numpy())
        table = self._cache.table.iloc[np.concatenate(everyone)]
        path = self._run.path / "nonfinite.csv"
        if self._processes.writes:
            write_table(path, table[["row", "image_id", *SERIES, "frame"]])
        raise RunError(
            f"{self._run.path}: step {step:.0f}: the loss ({loss:g}) or the gradient (norm {norm:g}) is not finite; "
            f"the weights were not changed; its slices are in {path}; look at them, or start again with a lower --lr"
        )


def _say(line: str) -> None:
    """Print a line without harm to the bar, at once: in a pipe it would wait for a thousand others."""
    tqdm.write(line)
    sys.stdout.flush()


def duration(seconds: float) -> str:
    """Return a time in words, to the second or the minute."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"
