"""The commands that answer studies: the part of `predict` that takes DICOM files, and `serve`."""

import os
from pathlib import Path

import click

from training.errors import ConfigError

TOKEN_VARIABLE = "TRAIN_SERVE_TOKEN"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SERVE_EXTRA = "pip install 'ich-cache[serve]'"


def predict_dicom(
    run_path: Path, given: tuple[Path, ...], out: Path, device: str, *, sr: bool, heatmap: bool, identifiers: bool,
    tta: bool,
) -> None:  # fmt: skip
    """Answer DICOM files, print one line a study and where the page is."""
    from training.study.command import Wanted, predict_study

    found = predict_study(run_path, given, out, Wanted(sr, heatmap, identifiers, tta), device)
    for record in found.studies.to_dict("records"):
        said = [f"{name} {record[f'{name}_probability']:.3f}" for name in found.classes]
        click.echo(f"study {record['study']}: {record['slices']} slices; {', '.join(said)}")
    for record in found.series.to_dict("records"):
        if record["warning"]:
            click.echo(f"study {record['study']}, series {record['series']}: {record['warning']}", err=True)
    if found.patients > 1:
        click.echo(f"the files are of {found.patients} patients, or of studies without a PatientID", err=True)
    if len(found.left_out):
        click.echo(f"left out: {len(found.left_out):,} files; see {out / 'rejects.csv'}")
    click.echo(str(out / "report.html"))


@click.command("serve")
@click.option("--run", "run_path", type=click.Path(path_type=Path, file_okay=False), required=True, help="The run.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help=f"Elsewhere than on loopback {TOKEN_VARIABLE} must be set."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--tta", is_flag=True, help="Average over mirror images and small rotations.")
@click.option("--waiting", type=click.IntRange(1), default=16, show_default=True, help="Studies in hand; more get 503.")
@click.option("--builds", type=click.IntRange(1), default=2, show_default=True, help="Studies read at once.")
@click.option("--seconds", type=click.FloatRange(1), default=120.0, show_default=True, help="For one study.")
@click.option("--megabytes", type=click.IntRange(1), default=2048, show_default=True, help="Of one body.")
@click.option("--identifiers", is_flag=True, help="Let requests ask for UIDs, by ?identifiers=true.")
def serve_command(
    run_path: Path, host: str, port: int, device: str, *, tta: bool, waiting: int, builds: int, seconds: float,
    megabytes: int, identifiers: bool,
) -> None:  # fmt: skip
    """Answer studies over HTTP with one model in memory: POST DICOM files to /studies.

    A form of files, a STOW-RS body, a zip or one file; ?answer=json, page or sr; GET /health and /metrics.
    Requests bear the token of TRAIN_SERVE_TOKEN, if it is set: Authorization: Bearer TOKEN.
    """
    token = os.environ.get(TOKEN_VARIABLE) or None
    if host not in LOOPBACK and token is None:
        raise ConfigError(
            f"--host {host}: others could reach it; set a token in {TOKEN_VARIABLE}, or serve on 127.0.0.1"
        )
    try:
        from training.study.service import run_service
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed, train serve needs it; run: {SERVE_EXTRA}") from error
    from training.run.runs import open_run
    from training.study.building import find_pipeline
    from training.study.desk import Desk, Rules
    from training.study.model import open_model

    find_pipeline()
    model = open_model(open_run(run_path), device, tta=tta)
    rules = Rules(waiting, builds, seconds, megabytes, identifiers, token)
    run_service(Desk(model, rules), host, port)
