"""Measure the trainer on a GPU: every part in turn, within a time, with a verdict on each figure.

    bash benchmarks/gpu.sh [--minutes 6] [--out gpu.json] [--parts abcdefgh] [--small]

The exit code is 0 where all that was wanted holds. docs/gpu.md says what each line means.
"""

import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import torch
import torchvision

from benchmarks.gpu import rates, repeats, runs, syncs
from benchmarks.gpu.cache import make_cache
from benchmarks.gpu.checks import Report
from benchmarks.gpu.rates import Load
from testkit.fake_cache import write_cache
from training.run.config import Runtime, TrainConfig
from training.run.distributed import Processes

EPOCH_SHARES = (0.9, 0.05, 0.05)


@dataclass(frozen=True)
class Model:
    """A network and how much of it is measured: slices of its cache, distinct and copied, and steps."""

    name: str
    size_px: int
    batch_size: int
    distinct: int
    copies: int
    load: Load
    least: float | None = None  # images/s

    def config(self, *, compiled: bool = False, ema_decay: float = 0.999) -> TrainConfig:
        return TrainConfig(
            model=self.name,
            weights="none",
            size_px=self.size_px,
            batch_size=self.batch_size,
            compile=compiled,
            ema_decay=ema_decay,
            split_fractions=EPOCH_SHARES,
        )


FULL = (
    Model("resnet50", 224, 256, 1024, 26, Load(warm=5, steps=20), least=2800),
    Model("efficientnet_b3", 380, 128, 512, 16, Load(warm=3, steps=12)),
)
SMALL = (
    Model("shufflenet_v2_x0_5", 32, 8, 64, 4, Load(warm=1, steps=1, rounds=2)),
    Model("squeezenet1_1", 32, 8, 64, 4, Load(warm=1, steps=1, rounds=2)),
)


@dataclass(frozen=True)
class Bench:
    """Where and what is measured, and the rates of resident batches, which later parts are compared with."""

    report: Report
    folder: Path
    models: tuple[Model, Model]
    processes: Processes
    runtime: Runtime
    resident: dict[str, float]

    @property
    def small(self) -> bool:
        return self.models is SMALL

    def cache(self, model: Model) -> Path:
        path = self.folder / f"{model.size_px}-{model.distinct}-{model.copies}.zarr"
        return path if path.exists() else make_cache(path, model.size_px, model.distinct, model.copies)

    def new(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder))


def part_a(at: Bench) -> None:
    """Run the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/training", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True)
    passed = done.returncode == 0 and " passed" in done.stdout
    said = repeats.last_line(done.stdout) or repeats.last_line(done.stderr)
    at.report.holds("a", "tests marked gpu", passed, said) if not at.small else at.report.fact("a", "tests", said)


def part_b(at: Bench, model: Model, *, compiled: bool) -> None:
    """Measure the three rates of a model; the first, eager, also serves the parts a, c and f."""
    how = "compiled" if compiled else "eager"
    title, config, cache = f"{model.name} {how}", model.config(compiled=compiled), at.cache(model)
    with rates.bench(at.new(), cache, config, at.runtime, at.processes) as of:
        at.resident[title] = rates.measure_rates(at.report, "b", title, of, model.load, least=model.least)
        if model is at.models[0] and not compiled:
            runs.measure_agreement(at.report, of, at.runtime)
            syncs.measure_syncs(at.report, of, *((2, 1) if at.small else (10, 5)))
            rates.measure_evaluation(at.report, of, 24 if at.small else 8192)


def part_d(at: Bench) -> None:
    """Train two epochs, and take the path of several processes, beside the resident batch's rate of b."""
    first = at.models[0]
    resident = at.resident.get(f"{first.name} eager")
    log_every = Runtime(log_every=2 if at.small else 20, input_threads=Runtime.input_threads)
    compare = [runs.measure_fit(at.report, at.new(), at.cache(first), first.config(), log_every, at.processes)]
    compare.append(
        runs.measure_distributed(
            at.report, at.new(), at.cache(first), first.config(), at.runtime, at.processes.device, first.load
        )
    )
    for of in compare if resident is not None else []:
        of(resident)


def part_e(at: Bench) -> None:
    """Repeat deterministic runs to the bit."""
    cache = write_cache(at.folder / "repeats.zarr", patients=10, slices=5).path
    ways = repeats.WAYS[:1] if at.small else repeats.WAYS
    repeats.measure_repeats(
        at.report,
        at.new(),
        repeats.Plan(cache, at.processes.device.type, at.models[0].name if at.small else "resnet18", ways),
    )


def part_g(at: Bench) -> None:
    """Run out of memory."""
    first = at.models[0]
    scarce = runs.scarce_memory if at.processes.device.type == "cuda" else runs.pretended_scarcity
    runs.measure_out_of_memory(at.report, at.new(), at.cache(first), first.config(), at.runtime, at.processes, scarce)


def parts(at: Bench) -> list[tuple[str, str, float, Callable[[], None]]]:
    """Return the parts in their order, what would be missed most first: letter, title, seconds it takes, and itself."""
    first, second = at.models
    listed = [
        ("b", "a, b, c, f: the first model, eager", 70, lambda: part_b(at, first, compiled=False)),
        ("d", "d, h: two epochs, and the path of several processes", 50, lambda: part_d(at)),
        ("e", "killed and resumed", 60, lambda: part_e(at)),
        ("g", "out of memory", 10, lambda: part_g(at)),
        ("a", "tests marked gpu", 25, lambda: part_a(at)),
        ("b", "the second model, eager", 40, lambda: part_b(at, second, compiled=False)),
        ("b", "the first model, compiled", 70, lambda: part_b(at, first, compiled=True)),
        ("b", "the second model, compiled", 90, lambda: part_b(at, second, compiled=True)),
    ]
    return [of for of in listed if not (at.small and "compiled" in of[1])]


@click.command()
@click.option("--minutes", default=6.0, show_default=True, help="A part that would not be done by then is not begun.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default="gpu.json", show_default=True)
@click.option("--parts", "wanted", default="abdeg", show_default=True, help="Letters; c, f and h go with b and d.")
@click.option("--small", is_flag=True, help="Everything on small networks, without a verdict on speed; on a CPU too.")
def main(minutes: float, out: Path, wanted: str, small: bool) -> None:
    """Measure the trainer on a GPU, and say of each figure whether it is as wanted."""
    if not torch.cuda.is_available() and not small:
        click.echo("no GPU here: nothing measured (all parts, small, on the CPU: --small)")
        sys.exit(1)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    report = Report(out, machine(device), minutes * 60, judges_speed=not small)
    click.echo(", ".join(f"{name} {value}" for name, value in report.facts.items()))
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        runtime = Runtime(log_every=10**9, loggers=())
        at = Bench(report, Path(folder), SMALL if small else FULL, Processes(0, 1, device), runtime, {})
        for letter, title, seconds, work in parts(at):
            if letter in wanted:
                report.do(letter, title, 0 if small else seconds, work)
                if device.type == "cuda":
                    torch.cuda.empty_cache()
    failed = report.failed
    click.echo(f"{len(failed)} of {len(report.checks)} lines FAIL; all are in {out}")
    sys.exit(bool(failed))


def machine(device: torch.device) -> dict[str, object]:
    """Say what is measured on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "CUDA": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "torchvision": torchvision.__version__,
        "Python": platform.python_version(),
        "system": platform.platform(),
    }


if __name__ == "__main__":
    main()
