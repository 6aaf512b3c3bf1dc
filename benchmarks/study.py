"""Time an answer: a study of 40 slices by ResNet-50 at 224 px, from a cold start and in the service.

    python -m benchmarks.study [--repeats 3]

It makes the run (fresh weights: they cost what trained ones cost) and the study, a phantom's, and prints wall and CPU
seconds of the whole and of its parts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from safetensors.torch import save_file

from benchmarks.frame import best, machine, timed
from benchmarks.service import HEADERS, body_of, free_port, wait_until_up
from phantom.study import make_study
from testkit.fake_cache import write_cache
from testkit.study import write_phantom
from testkit.tiny_run import HERE
from training.model.network import build_model
from training.run.config import TrainConfig
from training.run.job import begin

SLICES = 40
TRAIN = Path(sys.executable).with_name("train")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        run, study = make_run(Path(folder)), make_phantom(Path(folder))
        outs = iter(range(1000))

        def predict(*options: str) -> None:
            command = [TRAIN, "predict", "--run", run, "--dicom", study, "--out", Path(folder) / str(next(outs))]
            quietly(*command, "--device", "cpu", *options)

        def build() -> None:
            options = ("--src", study, "--out", Path(folder) / f"{next(outs)}.zarr", "--workers", 0)
            quietly(TRAIN.with_name("pipeline"), "build", *options)

        say("train predict --dicom, cold", predict, repeats)
        say("the same with --heatmap --sr", lambda: predict("--heatmap", "--sr"), 1)
        say("of it: pipeline build, beside the rest", build, repeats)
        say("of it: importing torch, torchvision, pandas", lambda: quietly(sys.executable, "-c", IMPORTS), repeats)
        with served(run) as client:
            body = body_of([file.read_bytes() for file in sorted(study.iterdir())])
            for kind in ("json", "page", "sr"):
                ask = f"/studies?answer={kind}"
                say(f"the service, {kind}", lambda ask=ask: post(client, ask, body), repeats)  # type: ignore[misc]


IMPORTS = "import torch, torchvision, pandas, training.study.model"


def make_run(folder: Path) -> Path:
    """Make a run of ResNet-50 with fresh weights and no thresholds."""
    cache = write_cache(folder / "cache.zarr", patients=12, slices=2, sizes=(224,))
    config = TrainConfig(model="resnet50", weights="none")
    run, _ = begin(folder / "run", cache.path, config, HERE)
    save_file({name: of.contiguous() for name, of in build_model(config, 6).state_dict().items()}, run.weights)
    return run.path


def make_phantom(folder: Path) -> Path:
    """Write 40 slices of the first phantom that has so many."""
    patient = next(number for number in range(1000) if len(make_study(0, number, 0).uids) >= SLICES)
    write_phantom(folder / "study", patient=patient, keep=SLICES)
    return folder / "study"


def quietly(*command: object) -> None:
    """Run a command to its end."""
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def post(client: httpx.Client, ask: str, body: bytes) -> None:
    """Ask the service once."""
    client.post(ask, content=body, headers=HEADERS).raise_for_status()


@contextmanager
def served(run: Path) -> Iterator[httpx.Client]:
    """Start the service, and end it."""
    port = free_port()
    command = [TRAIN, "serve", "--run", run, "--port", port, "--device", "cpu"]
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
            wait_until_up(client)
            yield client
    finally:
        process.terminate()
        process.wait(60)


def say(what: str, do: Callable[[], object], repeats: int) -> None:
    """Print the shortest wall and CPU seconds of some repeats; a service that runs on is not in the latter."""
    wall, cpu = best({what: lambda: timed(do)}, repeats)[what]
    print(json.dumps({"what": what, "wall_s": round(wall, 2), "cpu_s": round(cpu, 2)}), flush=True)


if __name__ == "__main__":
    main()
