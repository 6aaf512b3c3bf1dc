"""Time the answer to a study of 40 slices by ResNet-50 at 224 px, from a cold start and in the service.

    python -m benchmarks.study [--repeats 3]

Creates the run, with random weights, which take as long as trained ones, and a phantom study, and prints wall and CPU
seconds in total and by part.
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
    """Measure everything and print one JSON object per line."""
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

        measure("train predict --dicom, cold", predict, repeats)
        measure("the same with --heatmap --sr", lambda: predict("--heatmap", "--sr"), 1)
        measure("of which: pipeline build, in parallel with the rest", build, repeats)
        measure(
            "of which: importing torch, torchvision, pandas", lambda: quietly(sys.executable, "-c", IMPORTS), repeats
        )
        with served(run) as client:
            body = body_of([file.read_bytes() for file in sorted(study.iterdir())])
            for kind in ("json", "page", "sr"):
                ask = f"/studies?answer={kind}"
                measure(f"the service, {kind}", lambda ask=ask: post(client, ask, body), repeats)  # type: ignore[misc]


IMPORTS = "import torch, torchvision, pandas, training.study.model"


def make_run(folder: Path) -> Path:
    """Create a ResNet-50 run with random weights and no thresholds."""
    cache = write_cache(folder / "cache.zarr", patients=12, slices=2, sizes=(224,))
    config = TrainConfig(model="resnet50", weights="none")
    run, _ = begin(folder / "run", cache.path, config, HERE)
    save_file({name: of.contiguous() for name, of in build_model(config, 6).state_dict().items()}, run.weights)
    return run.path


def make_phantom(folder: Path) -> Path:
    """Write 40 slices of the first phantom that has at least that many."""
    patient = next(number for number in range(1000) if len(make_study(0, number, 0).uids) >= SLICES)
    write_phantom(folder / "study", patient=patient, keep=SLICES)
    return folder / "study"


def quietly(*command: object) -> None:
    """Run a command without output."""
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def post(client: httpx.Client, ask: str, body: bytes) -> None:
    """Send one request to the service."""
    client.post(ask, content=body, headers=HEADERS).raise_for_status()


@contextmanager
def served(run: Path) -> Iterator[httpx.Client]:
    """Start the service, yield a client, and stop the service."""
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


def measure(what: str, do: Callable[[], object], repeats: int) -> None:
    """Print the least wall and CPU seconds of the repeats; CPU seconds do not include a running service."""
    wall, cpu = best({what: lambda: timed(do)}, repeats)[what]
    print(json.dumps({"what": what, "wall_s": round(wall, 2), "cpu_s": round(cpu, 2)}), flush=True)


if __name__ == "__main__":
    main()
