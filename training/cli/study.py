"""The command for predictions over HTTP: serve."""

from typing import Any

import click

from training.cli.options import DEVICE, TOKEN_VARIABLE, run_option


@click.command("serve")
@run_option
@click.option("--host", default="127.0.0.1", show_default=True, help=f"Other than loopback, needs {TOKEN_VARIABLE}.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--device", type=DEVICE, default="auto", show_default=True)
@click.option("--tta", is_flag=True, help="Average over mirror images and small rotations.")
@click.option(
    "--waiting",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Maximum number of studies in progress or queued; further requests get 503.",
)
@click.option(
    "--builds", type=click.IntRange(1), default=2, show_default=True, help="Studies to read at the same time."
)
@click.option("--seconds", type=click.FloatRange(1), default=120.0, show_default=True, help="Time limit for one study.")
@click.option(
    "--megabytes", type=click.IntRange(1), default=2048, show_default=True, help="Size limit for one request body."
)
@click.option("--identifiers", is_flag=True, help="Let requests ask for UIDs with ?identifiers=true.")
def serve_command(**options: Any) -> None:
    """Serve predictions for studies over HTTP.

    POST DICOM files to /studies as a form, a STOW-RS body, a zip archive or a single file; choose ?answer=json, page
    or sr. GET /health and /metrics. If TRAIN_SERVE_TOKEN is set, requests must carry it: Authorization: Bearer TOKEN.
    One model is kept in memory.
    """
    from training.cli.bodies.serve import serve

    serve(**options)
