"""The command `train`: it reads options, calls one function, prints its result."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from training.cli import scores, series
from training.cli.scores import CACHE, STOPPED, local_copy_option
from training.cli.study import predict_dicom, serve_command
from training.errors import TrainingError

# Nothing here imports torch, pandas or zarr before a command runs: `train --help` is to answer at once.
from training.run import config as settings
from training.run.config import Runtime, TrainConfig
from training.run.presets import PRESETS

if TYPE_CHECKING:
    from training.run.distributed import Processes
    from training.run.runs import Run

DEFAULTS = TrainConfig()

EXIT_CODES = (
    "Exit codes: 0 done; 1 something that you can mend, said in one line; 2 wrong usage; 143 stopped by SIGTERM or "
    "Ctrl-C after a checkpoint was written, to go on with: train run --resume DIR."
)

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)


def machine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that every command has which computes."""
    for option in (
        click.option(
            "--input-threads",
            type=click.IntRange(0),
            default=Runtime.input_threads,
            show_default=True,
            help="Threads that read and decode.",
        ),
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
            help="auto is a GPU where there is one.",
        ),
    ):
        command = option(command)
    return command


def run_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option("--run", "run_path", type=FOLDER, required=True, help="Folder of the run.")(command)


class Group(click.Group):
    """Commands whose known errors are one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TrainingError as error:
            click.echo(" ".join(str(error).split()), err=True)
            sys.exit(1)


@click.group(cls=Group, epilog=EXIT_CODES)
@click.version_option(package_name="ich-cache", prog_name="train")
def main() -> None:
    """Train, evaluate and use a classifier of head-CT slices, from a cache that `pipeline build` made."""


@main.command("run", epilog=EXIT_CODES)
@click.option("--cache", type=CACHE, help="The cache to train from.")
@local_copy_option
@click.option("--out", type=FOLDER, help="Folder of the new run; must not exist, or be empty.")
@click.option("--resume", type=FOLDER, help="Go on with this run from its last checkpoint, to the same weights.")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="Settings that go together, which the other options override: finetune has the defaults, scratch needs no "
    "ImageNet weights, demo (small_resnet) learns in minutes on two cores.",
)
@click.option(
    "--model",
    help="A classification model of torchvision, timm:NAME, or module:function of your own that takes the number of "
    f"channels and returns a torch module from images to features (B, D). [default: {DEFAULTS.model}]",
)
@click.option("--size", "size_px", type=int, help="Image side, px. [default: 380 for efficientnet_b3, else 224]")
@click.option("--weights", help=f"imagenet, none, or a file with a state dict. [default: {DEFAULTS.weights}]")
@click.option("--augment", metavar="MODULE:FUNCTION", help="Augmentation of your own; see docs/library.md.")
@click.option("--loss", metavar="MODULE:FUNCTION", help="A loss of your own, in the place of weighted cross-entropy.")
@click.option("--epochs", type=int, help=f"[default: {DEFAULTS.epochs}]")
@click.option("--batch-size", type=int, help=f"Slices in a batch, over all GPUs. [default: {DEFAULTS.batch_size}]")
@click.option("--lr", "learning_rate", type=float, help=f"Largest learning rate. [default: {DEFAULTS.learning_rate}]")
@click.option("--seed", type=int, help=f"[default: {DEFAULTS.seed}]")
@click.option("--context", type=int, metavar="N", help="Slices on each side that the network sees too. [default: 0]")
@click.option(
    "--context-windows", metavar="NAMES", help="Windows of those slices: all, or names, brain,bone say. [default: all]"
)
@click.option("--no-position", "position", flag_value=False, default=None, help="Train without the position branch.")
@click.option("--deterministic", flag_value=True, default=None, help="Repeat to the bit on a GPU too; slower.")
@click.option("--compile", flag_value=True, default=None, help="torch.compile: a slow start, faster steps on a GPU.")
@click.option(
    "--set",
    "others",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other setting of training/run/config.py, ema_decay=0.999 say. May be given again.",
)
@click.option(
    "--checkpoint-every",
    type=click.IntRange(0),
    default=Runtime.checkpoint_every,
    metavar="STEPS",
    help="Steps between checkpoints; 0: at the ends of epochs only.",
)
@click.option(
    "--keep",
    type=click.IntRange(1),
    default=Runtime.keep_checkpoints,
    show_default=True,
    help="Checkpoints to keep, the newest.",
)
@click.option(
    "--log-every",
    type=click.IntRange(1),
    default=Runtime.log_every,
    show_default=True,
    metavar="STEPS",
    help="Steps between two looks at the loss.",
)
@click.option(
    "--logger",
    "loggers",
    default=",".join(Runtime.loggers),
    show_default=True,
    metavar="NAMES",
    help="Trackers, with commas between them: tensorboard, csv (always), wandb, mlflow; see docs/library.md.",
)
@click.option("--dry-run", is_flag=True, help="Two steps, an evaluation, a save and a reload; nothing stays.")
@machine_options
def run_command(
    cache: str | None,
    local_copy: Path | None,
    out: Path | None,
    resume: Path | None,
    preset: str | None,
    others: tuple[str, ...],
    checkpoint_every: int,
    keep: int,
    log_every: int,
    loggers: str,
    dry_run: bool,
    device: str,
    input_threads: int,
    **options: Any,
) -> None:
    """Train a model, or go on with a run that was stopped.

    When it ends, the run's folder holds the best weights, predictions and scores on validation and test, and
    report.html. Under torchrun it uses one GPU a process.
    """
    if resume is None and (cache is None or (out is None and not dry_run)):
        raise click.UsageError("give --cache and --out for a new run, or --resume DIR")
    if resume is not None and (out is not None or dry_run or preset is not None):
        raise click.UsageError("--resume takes neither --out nor --preset nor --dry-run")
    overrides = _overrides(preset, options, others)
    trackers = tuple(name.strip() for name in loggers.split(",") if name.strip())
    runtime = Runtime(device, input_threads, Runtime.batches_ahead, checkpoint_every, keep, log_every, trackers)

    from training.run import job
    from training.run.distributed import join_processes
    from training.run.inference import Stopped
    from training.run.loggers import check_loggers
    from training.run.preview import preview

    check_loggers(trackers)
    if "weights" in overrides:
        overrides["weights"] = job.absolute_weights(overrides["weights"])
    with join_processes(device) as processes:
        if dry_run:
            assert cache is not None
            return _rehearse(cache, settings.new_settings(overrides), runtime, processes, local_copy)
        if resume is not None:
            run, opened = job.resume(resume, cache, overrides, local_copy)
            if changes := job.changed_environment(run, processes):
                click.echo(f"the last bits may differ from an undisturbed run: {'; '.join(changes)}", err=True)
        else:
            assert cache is not None
            assert out is not None
            run, opened = job.begin(out, cache, settings.new_settings(overrides), processes, local_copy)
            _say(processes, f"weights: {run.environment['weights']}")
        _say(processes, "\n".join(preview(run, opened, processes)))
        try:
            job.complete(run, opened, runtime, processes)
        except Stopped:
            _say(processes, f"stopped; to go on: train run --resume {run.path}", err=True)
            # The other processes have stopped too; nothing is left that would need an orderly exit.
            sys.exit(STOPPED)
        if processes.writes:
            _say_end(run)


def _say_end(run: "Run") -> None:
    from training.scores.evaluation import in_a_line
    from training.scores.results import read_json

    for side in filter(run.has, ("validation", "test")):
        click.echo(in_a_line(read_json(run.path / f"scores_{side}.json"), side))
    click.echo(str(run.path / "report.html"))


def _say(processes: "Processes", *lines: str, err: bool = False) -> None:
    """Print lines, once however many processes there are."""
    if processes.writes:
        click.echo("\n".join(lines), err=err)


def _overrides(preset: str | None, options: dict[str, Any], others: tuple[str, ...]) -> dict[str, Any]:
    """What a command sets: its preset, then its options, then its --set."""
    given = {name: value for name, value in options.items() if value is not None}
    return (PRESETS[preset] if preset else {}) | given | dict(settings.parse_setting(text) for text in others)


def _rehearse(
    cache: str, config: TrainConfig, runtime: Runtime, processes: "Processes", local_copy: Path | None
) -> None:
    from training.run.rehearsal import rehearse

    said = rehearse(cache, config, runtime, processes, local_copy)
    if processes.writes:
        click.echo(said)


@main.command("evaluate", epilog=EXIT_CODES)
@run_option
@click.option(
    "--split", "side", type=click.Choice(["validation", "test", "external"]), default="test", show_default=True
)
@click.option("--tta", is_flag=True, help="Average over mirror images and small rotations; files are then named _tta.")
@click.option("--cache", type=CACHE, help="Where the run's cache has moved to; for --split external, the other cache.")
@local_copy_option
@machine_options
def evaluate_command(
    run_path: Path,
    side: str,
    tta: bool,
    cache: str | None,
    local_copy: Path | None,
    device: str,
    input_threads: int,
) -> None:
    """Score a run's best weights on its validation or test slices, or on all labelled slices of another cache.

    Validation also chooses the thresholds and the calibration that the others are scored with. Under torchrun write
    `-m -- training evaluate`, or it takes --run for an option of its own.
    """
    from training.run import job
    from training.run.distributed import join_processes
    from training.scores.evaluation import to_text

    with join_processes(device) as processes:
        run, opened = job.open_to_evaluate(run_path, cache, side, local_copy)
        scores = job.evaluate(run, opened, side, Runtime(device, input_threads), processes, tta=tta)
        if processes.writes:
            click.echo(to_text(scores, f"{side}{' with TTA' if tta else ''}"))
            if (gone := scores["source"].get("left_out", {})).get("patients"):
                listed = run_path / f"{job.predictions_name(side, tta)}_left_out.csv"
                click.echo(
                    f"left out, for the run may have learned from them: {gone['patients']:,} patients with "
                    f"{gone['slices']:,} slices; {listed}"
                )
            if "at_threshold" not in scores and run.has("validation"):
                wanted = f"train evaluate --run {run_path} --split validation{' --tta' if tta else ''}"
                click.echo(f"no thresholds and no calibration yet; they come from: {wanted}")
            click.echo(f"all scores: {run_path / f'scores_{job.predictions_name(side, tta)}.json'}")
            click.echo(f"report.html shows them after: train report --run {run_path}")


@main.command("predict", epilog=EXIT_CODES)
@run_option
@click.option("--cache", type=CACHE, help="The cache to predict; it needs no labels.")
@click.option(
    "--dicom",
    "given",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Instead of a cache: a study's folder, zip archive or file of DICOM. May be given again.",
)
@local_copy_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="The submission, CSV; OUT_wide.csv and OUT_series.csv go beside it. With --dicom the folder of the answer.",
)
@click.option(
    "--sample", type=click.Path(path_type=Path, dir_okay=False), help="A sample submission whose order is kept."
)
@click.option("--tta", is_flag=True, help="Average over mirror images and small rotations.")
@click.option("--sr", is_flag=True, help="With --dicom: also a DICOM structured report a study.")
@click.option("--heatmap", is_flag=True, help="With --dicom: heat maps on the page, and as DICOM parametric maps.")
@click.option("--identifiers", is_flag=True, help="With --dicom: UIDs and file names also on the page and in the JSON.")
@machine_options
def predict_command(
    run_path: Path,
    cache: str | None,
    given: tuple[Path, ...],
    local_copy: Path | None,
    out: Path,
    sample: Path | None,
    device: str,
    input_threads: int,
    tta: bool,
    **answer: bool,
) -> None:
    """Predict every slice of a cache with a run's best weights, or answer a study of DICOM files.

    An answer is a folder: slices.csv, series.csv, studies.csv, rejects.csv, answer.json, and report.html to look at.
    """
    if (cache is None) == (not given):
        raise click.UsageError("give --cache CACHE or --dicom STUDY, one of them")
    if given:
        if sample is not None or local_copy is not None:
            raise click.UsageError("--dicom takes neither --sample nor --local-copy")
        return predict_dicom(run_path, given, out, device, tta=tta, **answer)
    if any(answer.values()):
        raise click.UsageError("--sr, --heatmap and --identifiers go with --dicom")
    assert cache is not None
    if out.is_dir():
        raise click.UsageError(f"--out {out}: is a folder; with --cache give the CSV file")
    _predict_cache(run_path, cache, local_copy, out, sample, Runtime(device, input_threads), tta=tta)


def _predict_cache(
    run_path: Path, cache: str, local_copy: Path | None, out: Path, sample: Path | None, runtime: Runtime, *, tta: bool
) -> None:
    import numpy as np

    from training.data.cache import open_cache
    from training.run.apply import run_predictions
    from training.run.distributed import join_processes
    from training.run.predict import check_sample, write_predictions
    from training.run.runs import open_run

    with join_processes(runtime.device) as processes:
        run, opened = open_run(run_path), open_cache(cache, local_copy=local_copy)
        if sample is not None:
            check_sample(sample, opened.table, run.data.classes)
        everything = np.arange(opened.num_slices)
        lines, probabilities = run_predictions(run, opened, everything, runtime, processes, tta=tta)
        if processes.writes:
            for path in write_predictions(out, opened, lines, probabilities, run.data.classes, sample):
                click.echo(str(path))


for command in (*scores.COMMANDS, *series.COMMANDS, serve_command):
    main.add_command(command)
