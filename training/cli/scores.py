"""The commands that look at runs: compare, ablate, report, export."""

import sys
from collections.abc import Callable
from pathlib import Path

import click

FOLDER = click.Path(path_type=Path, file_okay=False)
CACHE = click.Path(file_okay=False)  # stays as it was typed: a Path would spoil an address
FILE = click.Path(path_type=Path, dir_okay=False)
STOPPED = 143
PREDICTIONS = click.Choice(["test", "validation", "test_tta", "validation_tta"])


def local_copy_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--local-copy",
        type=FOLDER,
        metavar="DIR",
        help="Copy what is read of the cache to this local folder, and read it there: for a cache on a network disk or "
        "at an address, s3://bucket/cache.zarr say. Runs may share DIR.",
    )(command)


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option("--on", type=PREDICTIONS, default="test", show_default=True, help="Which predictions to compare.")
@click.option("--tta", is_flag=True, help="Compare each run with itself with TTA, too.")
@click.option("--every-score", is_flag=True, help="Print also the scores at a threshold of 0.5 and of calibration.")
@click.option("--out", type=FILE, help="The whole table, CSV.")
def compare_command(runs: tuple[Path, ...], on: str, tta: bool, every_score: bool, out: Path | None) -> None:
    """Say how much better one run is than another on the same slices, with 95 % intervals."""
    from training.run.runs import write_table
    from training.scores.compare import compare, read_contestants, to_text

    contestants = read_contestants(runs, on)
    if tta:
        contestants += read_contestants(runs, f"{on.removesuffix('_tta')}_tta")
    table = compare(contestants)
    click.echo(to_text(table, every_score))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_table(out, table)
        click.echo(str(out))


@click.command("ablate")
@click.option("--cache", type=CACHE, required=True, help="The cache to train from.")
@local_copy_option
@click.option("--out", type=FOLDER, required=True, help="Folder of the runs and of the table; runs that are done stay.")
@click.option("--model", "models", multiple=True, default=("resnet50",), show_default=True, help="May be given again.")
@click.option("--seed", "seeds", multiple=True, type=int, default=(0,), show_default=True, help="May be given again.")
@click.option("--on", type=click.Choice(["test", "validation"]), default="test", show_default=True)
@click.option(
    "--vary",
    default="position",
    show_default=True,
    metavar="NAMES",
    help="What to measure, with commas between: position, context (one slice on each side), series (a GRU over the "
    "series).",
)
@click.option(
    "--set", "others", multiple=True, metavar="NAME=VALUE", help="A setting of every run on images, epochs=2 say."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def ablate_command(
    cache: str,
    local_copy: Path | None,
    out: Path,
    models: tuple[str, ...],
    seeds: tuple[int, ...],
    on: str,
    vary: str,
    others: tuple[str, ...],
    device: str,
) -> None:
    """Train with and without position, neighbours or a head over the series, and say what each adds.

    For each model and seed. Writes ablation.csv and ablation.html.
    """
    from training.run.config import Runtime, parse_setting
    from training.run.distributed import join_processes
    from training.run.inference import Stopped
    from training.run.job import absolute_weights
    from training.scores.ablate import PAGE, TABLE, Ablation, ablate, over_seeds
    from training.scores.compare import to_text

    settings = dict(parse_setting(text) for text in others)
    if "weights" in settings:
        settings["weights"] = absolute_weights(settings["weights"])
    with join_processes(device) as processes:
        try:
            of = Ablation(cache, out, settings, Runtime(device), processes, on, local_copy)
            table = ablate(of, models, seeds, [name.strip() for name in vary.split(",")])
        except Stopped:
            if processes.writes:
                click.echo("stopped; the same command goes on", err=True)
            sys.exit(STOPPED)
        if processes.writes:
            click.echo(to_text(table))
            if len(seeds) > 1:
                click.echo(f"\n{over_seeds(table)}")
            click.echo(f"\n{out / TABLE}\n{out / PAGE}")


@click.command("report")
@click.option("--run", "run_path", type=FOLDER, required=True, help="Folder of the run.")
@click.option("--cache", type=CACHE, help="Where the run's cache has moved to.")
@local_copy_option
def report_command(run_path: Path, cache: str | None, local_copy: Path | None) -> None:
    """Write report.html and model_card.md of a run anew."""
    from training.report.report import write_report
    from training.run.runs import open_run
    from training.scores.content import open_own_cache

    click.echo(write_report(run_path, open_own_cache(open_run(run_path), cache, local_copy)))


@click.command("export")
@click.option("--run", "run_path", type=FOLDER, required=True, help="Folder of the run.")
@click.option("--format", "form", type=click.Choice(["onnx", "torch"]), default="onnx", show_default=True)
@click.option("--out", type=FILE, help="The file. [default: model.onnx or model.pt2 in the run's folder]")
@click.option("--cache", type=CACHE, help="Where the run's cache has moved to; its first slices are the check.")
@local_copy_option
def export_command(run_path: Path, form: str, out: Path | None, cache: str | None, local_copy: Path | None) -> None:
    """Write the run's network as one file: uint8 images and slice positions in, probabilities out."""
    from training.model.export import SUFFIXES, export
    from training.run.runs import open_run
    from training.scores.content import open_own_cache

    run = open_run(run_path)
    out = out or run_path / f"model{SUFFIXES[form]}"
    difference = export(run, open_own_cache(run, cache, local_copy), form, out)
    click.echo(f"{out}: largest difference of a probability from the run's {difference:.1e}")


COMMANDS = (compare_command, ablate_command, report_command, export_command)
