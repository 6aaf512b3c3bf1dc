"""Kill training runs at random times and at random writes, and compare their final weights.

    python -m benchmarks.resume --kills 50

Prints the numbers of unreadable checkpoints and of final weights that differ from those of an undisturbed run; both
must be 0.
"""

import signal
import sys
import tempfile
from pathlib import Path

import click
import numpy as np

from testkit.fake_cache import write_cache
from testkit.tiny_run import settings, spawn
from training.errors import RunError
from training.run.checkpoints import list_checkpoints, load_checkpoint
from training.run.runs import open_run

WRITES = 150  # fsyncs and renames in an undisturbed run


@click.command()
@click.option("--kills", default=50, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(kills: int, seed: int) -> None:
    """Kill and resume runs until the number of kills is reached."""
    rng = np.random.default_rng(seed)
    killed = unreadable = other = runs = at_writes = 0
    with tempfile.TemporaryDirectory(prefix="resume-") as folder:
        cache = write_cache(Path(folder) / "c.zarr", patients=10, slices=5).path
        whole = Path(folder) / "undisturbed"
        spawn(whole, cache, settings(), checkpoint_every=1).join()
        expected = (whole / "weights.safetensors").read_bytes()
        while killed < kills:
            runs += 1
            path = Path(folder) / f"run{runs}"
            finished = False
            while not finished:
                # Half of the kills are at a write, the others at any time.
                kill_at = int(rng.integers(1, WRITES)) if rng.random() < 0.5 and killed < kills else 0
                process = spawn(path, cache, settings(), kill_at, checkpoint_every=1)
                process.join(None if kill_at or killed >= kills else rng.uniform(0.1, 3))
                process.kill()
                process.join()
                finished = process.exitcode == 0
                killed += process.exitcode == -signal.SIGKILL
                at_writes += bool(kill_at) and not finished
                unreadable += _unreadable(path)
            other += (path / "weights.safetensors").read_bytes() != expected
    click.echo(f"{killed} kills, {at_writes} of them at a write, in {runs} runs")
    click.echo(f"unreadable checkpoints {unreadable}, final weights that differ {other}")
    sys.exit(bool(unreadable or other))


def _unreadable(path: Path) -> int:
    """Return 1 if a run has checkpoints but its latest cannot be read, otherwise 0."""
    if not (path / "settings.json").exists():
        return 0
    run = open_run(path)
    try:
        return int(load_checkpoint(run) is None and bool(list_checkpoints(run)))
    except RunError:
        return 1


if __name__ == "__main__":
    main()
