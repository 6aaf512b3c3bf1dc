"""Measure the trainer on a GPU: all parts in turn, within a time limit, with a verdict on each figure.

    bash benchmarks/gpu.sh [--minutes 6] [--out gpu.json] [--parts abcdefgh] [--small]

The exit code is 0 if all targets are met. docs/gpu.md says what each line means.
"""

import gc
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

START_S = 10  # to install the wheels, import PyTorch and open the GPU; included in --minutes
Shares = tuple[float, float, float]


@dataclass(frozen=True)
class Model:
    """A network and how much of it to measure.

    Attributes:
        distinct, copies: slices of its cache, as for `make_cache`.
        load: steps to measure.
        shares: of the split, eager and compiled. Compiled, all batches have one size, because each size is compiled
            separately.
        least: target in images/s from the cache; None if there is no target.
    """

    name: str
    size_px: int
    batch_size: int
    distinct: int
    copies: int
    load: Load
    shares: tuple[Shares, Shares]
    least: float | None = None

    def config(self, *, compiled: bool = False, ema_decay: float = 0.999) -> TrainConfig:
        return TrainConfig(
            model=self.name,
            weights="none",
            size_px=self.size_px,
            batch_size=self.batch_size,
            compile=compiled,
            ema_decay=ema_decay,
            split_fractions=self.shares[compiled],
        )


def shares(train: float) -> Shares:
    """Return the shares of a split in which training has `train`, and the other two share the rest equally."""
    return train, (1 - train) / 2, (1 - train) / 2


FULL = (
    Model("resnet50", 224, 256, 1024, 20, Load(warm=3, steps=12), (shares(0.94), shares(0.95)), least=2800),
    Model("efficientnet_b3", 380, 128, 512, 16, Load(warm=2, steps=8), (shares(0.92), shares(0.92))),
)
SMALL = (
    Model("shufflenet_v2_x0_5", 32, 8, 64, 4, Load(warm=1, steps=1, rounds=2), (shares(0.9), shares(0.9))),
    Model("squeezenet1_1", 32, 8, 64, 4, Load(warm=1, steps=1, rounds=2), (shares(0.9), shares(0.9))),
)


@dataclass(frozen=True)
class Bench:
    """What is measured and where, and the rates of resident batches, to which later parts are compared."""

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


# Listed by name: collecting all tests takes longer than running these, and needs packages that the machine may lack.
ROOT = Path(__file__).parents[2]
GPU_TESTS = ("tests/training/data/test_stream_gpu.py",)
PYTEST_S = 240  # limit, if the part has none of its own


def part_a(at: Bench) -> None:
    """Run the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", *GPU_TESTS, "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PYTEST_S, cwd=ROOT)
    passed = done.returncode == 0 and " passed" in done.stdout
    summary = repeats.last_line(done.stdout) or repeats.last_line(done.stderr)
    name = "tests marked gpu"
    at.report.holds("a", name, passed, summary) if not at.small else at.report.fact("a", name, summary)


def part_b(at: Bench, model: Model, *, compiled: bool) -> None:
    """Measure the three rates of a model; the first model, eager, also serves parts a, c and f."""
    how = "compiled" if compiled else "eager"
    title, config, cache = f"{model.name} {how}", model.config(compiled=compiled), at.cache(model)
    with rates.bench(at.new(), cache, config, at.runtime, at.processes) as of:
        at.resident[title] = rates.measure_rates(at.report, "b", title, of, model.load, least=model.least)
        if model is at.models[0] and not compiled:
            with at.report.attempt("a", "make_inputs: CPU against device"):
                runs.measure_agreement(at.report, of, at.runtime)
            with at.report.attempt("c", "steps in which the host waits for the GPU"):
                syncs.measure_syncs(at.report, of, 2 if at.small else 10)
            with at.report.attempt("c", "steps under the profiler"):
                syncs.measure_gaps(at.report, of, 1 if at.small else 5)
            with at.report.attempt("f", "evaluation"):
                rates.measure_evaluation(at.report, of, 24 if at.small else 4096)


def part_d(at: Bench) -> None:
    """Train two epochs, and use the path of several processes; compare both with part b's resident rate."""
    first = at.models[0]
    resident = at.resident.get(f"{first.name} eager")
    log_every = Runtime(log_every=2 if at.small else 10, input_threads=Runtime.input_threads)
    compare = []
    with at.report.attempt("d", "two epochs"):
        compare.append(runs.measure_fit(at.report, at.new(), at.cache(first), first.config(), log_every, at.processes))
    with at.report.attempt("d", "one process by the path of several"):
        compare.append(
            runs.measure_distributed(
                at.report, at.new(), at.cache(first), first.config(), at.runtime, at.processes.device, first.load
            )
        )
    for of in compare if resident is not None else []:
        of(resident)


def part_e(at: Bench, meanwhile: Callable[[], None]) -> None:
    """Compare deterministic runs to the bit; while their processes compile, run the parts that time nothing."""
    cache = write_cache(at.folder / "repeats.zarr", patients=10, slices=5).path
    ways = repeats.WAYS[:1] if at.small else repeats.WAYS
    repeats.measure_repeats(
        at.report,
        at.new(),
        repeats.Plan(cache, at.processes.device.type, at.models[0].name if at.small else "resnet18", ways),
        meanwhile,
    )


def part_g(at: Bench) -> None:
    """Provoke running out of memory."""
    first = at.models[0]
    scarce = runs.scarce_memory if at.processes.device.type == "cuda" else runs.pretended_scarcity
    runs.measure_out_of_memory(at.report, at.new(), at.cache(first), first.config(), at.runtime, at.processes, scarce)


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        letter: its letter in docs/gpu.md.
        seconds: estimated time on an H100.
    """

    letter: str
    title: str
    seconds: float
    work: Callable[[], None]


def parts(at: Bench, wanted: str) -> list[Part]:
    """Return the parts in order, the most important first."""
    first, second = at.models
    untimed = [
        Part("g", "out of memory", 10, lambda: part_g(at)),
        Part("a", "tests marked gpu", 25, lambda: part_a(at)),
    ]

    def meanwhile() -> None:
        for part in untimed:
            do(at, part, wanted)

    listed = [
        Part("b", f"a, b, c, f: {first.name}", 45, lambda: part_b(at, first, compiled=False)),
        Part("d", "d, h: two epochs, and the path of several processes", 35, lambda: part_d(at)),
        *([Part("e", "killed and resumed", 65, lambda: part_e(at, meanwhile))] if "e" in wanted else untimed),
        Part("b", second.name, 35, lambda: part_b(at, second, compiled=False)),
        Part("b", f"{first.name}, compiled", 55, lambda: part_b(at, first, compiled=True)),
        Part("b", f"{second.name}, compiled", 75, lambda: part_b(at, second, compiled=True)),
    ]
    return [part for part in listed if not (at.small and part.title.endswith("compiled"))]


def do(at: Bench, part: Part, wanted: str) -> None:
    """Run a part if it is wanted, and release the GPU's memory for the next one."""
    if part.letter in wanted:
        at.report.do(part.letter, part.title, 0 if at.small else part.seconds, part.work)
        if at.processes.device.type == "cuda":
            with at.report.attempt(part.letter, f"{part.title}: memory given back"):
                gc.collect()
                torch.cuda.empty_cache()


@click.command()
@click.option("--minutes", default=6.0, show_default=True, help="Time limit; the file has the results so far.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default="gpu.json", show_default=True)
@click.option(
    "--parts", "wanted", default="abdeg", show_default=True, help="Letters of parts; c, f and h run with b and d."
)
@click.option("--small", is_flag=True, help="Use small networks, without verdicts on speed; for CPUs too.")
def main(minutes: float, out: Path, wanted: str, small: bool) -> None:
    """Measure the trainer on a GPU, and judge each figure by its target."""
    if not torch.cuda.is_available() and not small:
        click.echo("no GPU here: nothing measured (--small runs all parts on the CPU)")
        sys.exit(1)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    report = Report(out, machine(device), minutes * 60 - START_S, judges_speed=not small)
    click.echo(", ".join(f"{name} {value}" for name, value in report.facts.items()))
    with tempfile.TemporaryDirectory(prefix="gpu-", ignore_cleanup_errors=True) as folder:
        runtime = Runtime(log_every=10**9, loggers=())
        at = Bench(report, Path(folder), SMALL if small else FULL, Processes(0, 1, device), runtime, {})
        listed = [part for part in parts(at, wanted) if part.letter in wanted]
        if not small:
            estimate = START_S + sum(part.seconds for part in listed)
            click.echo(f"about {estimate:.0f} s by estimate, {minutes * 60:.0f} s at most")
        with report.ends_in_time():
            for part in listed:
                do(at, part, wanted)
            report.finish()
    failed = report.failed
    click.echo(f"{len(failed)} of {len(report.checks)} lines FAIL; all lines are in {out.resolve()}")
    sys.exit(bool(failed))


def machine(device: torch.device) -> dict[str, object]:
    """Describe the machine."""
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
