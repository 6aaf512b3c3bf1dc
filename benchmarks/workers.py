"""Measure the cost and gain of workers: start-up, Dask's share of the time, two against one, memory.

    python benchmarks/workers.py [--shards 40] [--repeats 3] [--data DIR]

Every task builds a shard from the same 256 phantom slices at 224 px, page cache warm. Start-up is the time until the
first task begins; Dask's share is the time that one worker, once busy, did not spend in tasks. The last line also has
the ratio of two to one for processes that run the tasks without Dask, which shows the limit of the machine. The cases
take turns, and the fastest run of each counts.
"""

import argparse
import dataclasses
import multiprocessing
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import psutil
from build import floor, fresh, make_build_settings, make_slices

from pipeline.cache.lock import lock
from pipeline.cache.paths import Cache
from pipeline.engine.build import make_context
from pipeline.engine.convert import build_shard
from pipeline.engine.run import run_jobs
from pipeline.engine.work import Work
from pipeline.planning.settings import BuildOptions, Workers
from pipeline.planning.survey import survey

ROWS = 256


@dataclasses.dataclass(frozen=True)
class Run:
    """Seconds to the first task, then slices/s, the mean number of workers in a task, and memory of workers in MB."""

    start: float
    rate: float
    busy: float
    memory_mb: list[float]


def worker_memory_mb() -> float:
    """Return the resident memory of the largest descendant of this process in MB."""
    return max((child.memory_info().rss for child in psutil.Process().children(recursive=True)), default=0) / 1e6


def run(data: Path, cache: Cache, workers: int, shards: int) -> Run:
    """Run the tasks; the rate excludes the first, while workers start, and the last, while some workers are idle."""
    settings = make_build_settings(data, (224,))
    with lock(cache) as token:
        found = survey(cache, settings)
        context = make_context(Work(cache, settings, found, token, BuildOptions()))
        jobs = [dataclasses.replace(found.plan.jobs[0], shard=number) for number in range(shards)]
        called, came, tasks, memory = time.perf_counter(), [], [], []
        for result in run_jobs(context, jobs, Workers(workers), lambda line: None):
            came.append(time.perf_counter())
            tasks.append(result.seconds)
            if len(came) % max(1, shards // 20) == 0:  # measuring takes time from the scheduler, which runs here
                memory.append(worker_memory_mb())
    first, last = 2 * workers, shards - 1 - workers
    seconds = came[last] - came[first]
    rate, busy = (last - first) * ROWS / seconds, sum(tasks[first + 1 : last + 1]) / seconds
    return Run(came[0] - tasks[0] - called, rate, busy, memory)


def rate_without_dask(data: Path, cache: Cache, processes: int, shards: int) -> float:
    """Return the slices/s of processes that run the same tasks and share only the machine."""
    settings = make_build_settings(data, (224,))
    with lock(cache) as token, ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        found = survey(cache, settings)
        context = make_context(Work(cache, settings, found, token, BuildOptions()))
        jobs = [dataclasses.replace(found.plan.jobs[0], shard=number) for number in range(shards)]
        came = [time.perf_counter() for _ in pool.map(partial(build_shard, context), jobs)]
    first, last = 2 * processes, shards - 1 - processes
    return (last - first) * ROWS / (came[last] - came[first])


def print_run(workers: int, found: Run) -> None:
    print(f"--workers {workers}: start {found.start:.1f} s, then {found.rate:,.0f} slices/s", end="")
    if workers == 1:
        print(f", Dask's share {1 - found.busy:.1%}", end="")
    if workers:
        early, late = found.memory_mb[len(found.memory_mb) // 4], found.memory_mb[-1]
        print(f", largest worker {late:.0f} MB ({late - early:+.0f} MB over the last three quarters)", end="")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path, help="folder in which to keep the phantom files for the next run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        data, root = (options.data or Path(scratch)) / f"{ROWS}-slices", Path(scratch) / "cache"
        files = make_slices(data, ROWS)
        run(data, Cache(fresh(root)), 0, 4)  # compiles, or loads compiled code
        runs, rates = defaultdict(list), defaultdict(list)
        for _ in range(options.repeats):
            for workers in (0, 1, 2):
                floor(files)  # warms the page cache
                runs[workers].append(run(data, Cache(fresh(root)), workers, options.shards))
            for processes in (1, 2):
                floor(files)
                rates[processes].append(rate_without_dask(data, Cache(fresh(root)), processes, options.shards))
        fastest = {workers: max(found, key=lambda one: one.rate) for workers, found in runs.items()}
        for workers, found in fastest.items():
            print_run(workers, found)
        print(f"two workers / one: {fastest[2].rate / fastest[1].rate:.2f};", end=" ")
        print(f"two processes / one without Dask: {max(rates[2]) / max(rates[1]):.2f}")


if __name__ == "__main__":
    main()
