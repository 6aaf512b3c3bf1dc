"""The body of `train serve`: predictions over HTTP from one model in memory."""

import os
from pathlib import Path

from training.cli.options import TOKEN_VARIABLE
from training.errors import ConfigError
from training.run.runs import open_run
from training.study.building import find_pipeline
from training.study.model import open_model

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    *,
    run_path: Path,
    host: str,
    port: int,
    device: str,
    tta: bool,
    waiting: int,
    builds: int,
    seconds: float,
    megabytes: int,
    identifiers: bool,
) -> None:
    """Serve predictions for DICOM files that are posted to /studies, with one model in memory."""
    token = os.environ.get(TOKEN_VARIABLE) or None
    if host not in LOOPBACK and token is None:
        raise ConfigError(
            f"--host {host}: other machines could reach it; set a token in {TOKEN_VARIABLE}, or serve on 127.0.0.1"
        )
    try:
        from training.study.backend import Backend, Options
        from training.study.service import run_service
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed, and train serve needs it; run: pip install 'ich-cache[serve]'"
        ) from error

    find_pipeline()
    model = open_model(open_run(run_path), device, tta=tta)
    options = Options(waiting, builds, seconds, megabytes, identifiers, token)
    run_service(Backend(model, options), host, port)
