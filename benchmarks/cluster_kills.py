"""Kill workers, schedulers and the command itself during one build on a Dask cluster over TCP.

    python benchmarks/cluster_kills.py [--workers 30] [--schedulers 3] [--commands 3] [--shards 400] [--src FOLDER]

`dask scheduler` and two `dask worker --no-nanny` processes run on loopback; each is restarted when it has been killed.
After the loss of a scheduler or of the command, the same `pipeline build --scheduler tcp://...` runs again. Reading a
file is slowed down so that the build lasts longer than the kills. No shard with a done-record may be written again, and
the digest must be that of a local build. The slices are synthetic, or those of FOLDER, which must be uncompressed.
"""

import argparse
import contextlib
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from testkit.small import Small, write_slices

ROOT = Path(__file__).parent.parent
ROWS = 8
PAUSE_S = 0.05
BUILD = (
    "from pipeline.planning import survey\nfrom pipeline.cli.main import main\nfrom testkit.faulty import Faulty\n"
    f"survey.open_source = lambda src: Faulty(src, pause_s={PAUSE_S})\nmain()\n"
)


@dataclass
class Shards:
    """The shards that have a done-record, and those that were written again afterwards."""

    small: Small
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    again: set[str] = field(default_factory=set)

    def count(self) -> int:
        """Scan the records and return how many shards have one."""
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.small.out / ".pipeline" / "shards"):
                if entry.name.endswith(".json") and not entry.name.startswith("."):
                    status = entry.stat()
                    found = status.st_ino, status.st_mtime_ns
                    if self.files.setdefault(entry.name, found) != found:
                        self.again.add(entry.name)
        return len(self.files)


@dataclass
class Campaign:
    """One build whose processes are killed and restarted."""

    small: Small
    address: str
    rng: random.Random
    shards: Shards
    scheduler: subprocess.Popen
    workers: list[subprocess.Popen]
    command: subprocess.Popen
    builds: int = 1
    lines: list[str] = field(default_factory=list)

    @staticmethod
    def begin(small: Small, seed: int, workers: int = 2) -> "Campaign":
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        started = scheduler(address), [worker(small, address) for _ in range(workers)], build(small, address)
        return Campaign(small, address, random.Random(seed), Shards(small), *started)

    def wait_for_a_shard(self) -> bool:
        """Wait for one more finished shard, and then at most as long as a shard takes; return False if all are done."""
        before = self.shards.count()
        while self.shards.count() == before:
            if self.command.poll() is not None:
                return False
            time.sleep(0.02)
        until = time.monotonic() + self.rng.uniform(0, ROWS * PAUSE_S)
        while time.monotonic() < until:
            self.shards.count()
            time.sleep(0.02)
        return True

    def kill_worker(self) -> None:
        number = self.rng.randrange(len(self.workers))
        end(self.workers[number])
        self.workers[number] = worker(self.small, self.address)

    def kill_scheduler(self) -> None:
        """Kill the scheduler; the command must end with one line after those of its progress."""
        end(self.scheduler)
        stderr = self.command.communicate(timeout=180)[1]
        assert self.command.returncode == 1, stderr
        assert "Traceback" not in stderr, stderr
        self.lines.append(stderr.splitlines()[-1].replace(self.address, "tcp://..."))
        for process in self.workers:
            end(process)
        self.scheduler = scheduler(self.address)
        self.workers = [worker(self.small, self.address) for _ in self.workers]
        self.restart_command()

    def kill_command(self) -> None:
        end(self.command)
        self.restart_command()

    def restart_command(self) -> None:
        self.command = build(self.small, self.address)
        self.builds += 1

    def finish(self) -> None:
        while self.command.poll() is None:
            self.shards.count()
            time.sleep(0.02)
        assert self.command.returncode == 0, self.command.communicate()[1]
        self.shards.count()

    @contextlib.contextmanager
    def ended(self) -> Iterator["Campaign"]:
        try:
            yield self
        finally:
            for process in (self.command, *self.workers, self.scheduler):
                end(process)


def start(*arguments: object, **streams: int) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=environment, text=True, **streams)


def scheduler(address: str) -> subprocess.Popen:
    host, port = address.removeprefix("tcp://").split(":")
    options = ("--host", host, "--port", port, "--no-dashboard")
    process = start("-m", "dask", "scheduler", *options, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port))):
            return process
        time.sleep(0.1)


def worker(small: Small, address: str) -> subprocess.Popen:
    options = ("--nthreads", 1, "--no-nanny", "--no-dashboard", "--local-directory", small.folder)
    null = subprocess.DEVNULL
    return start("-m", "dask", "worker", address, *options, stdout=null, stderr=null)


def build(small: Small, address: str) -> subprocess.Popen:
    options = ("build", *small.options(), "--scheduler", address)
    return start("-c", BUILD, *options, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--workers", type=int, default=30)
    options.add_argument("--schedulers", type=int, default=3)
    options.add_argument("--commands", type=int, default=3)
    options.add_argument("--shards", type=int, default=400)
    options.add_argument("--src", type=Path)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        small = Small(Path(folder), rows=ROWS)
        if given.src:
            small.src.symlink_to(given.src.resolve())
        else:
            write_slices(small.src, range(given.shards * ROWS))
        started = time.monotonic()
        with Campaign.begin(small, given.seed).ended() as campaign:
            victims = {"worker": given.workers, "scheduler": given.schedulers, "command": given.commands}
            acts = [kind for kind, count in victims.items() for _ in range(count)]
            campaign.rng.shuffle(acts)
            done = dict.fromkeys(victims, 0)
            for kind in acts:
                if not campaign.wait_for_a_shard():
                    break
                getattr(campaign, f"kill_{kind}")()
                done[kind] += 1
                print(
                    f"{time.monotonic() - started:6.1f} s: {kind} killed, {len(campaign.shards.files)} shards",
                    flush=True,
                )
            campaign.finish()
        killed = ", ".join(f"{count} of {victims[kind]} {kind}s" for kind, count in done.items())
        print(f"killed {killed}; {campaign.builds} builds, {time.monotonic() - started:.0f} s")
        print(f"{len(campaign.shards.files)} shards, {len(campaign.shards.again)} of them written again when finished")
        equal = small.digest() == small.clean_digest(small.folder / "clean")
        print(f"digest {'equal to' if equal else 'DIFFERENT FROM'} that of a local build")
        print(f"verify: {small.verify(code=None).stdout.splitlines()[-1]}")
        for line in sorted(set(campaign.lines)):
            print(f"the command, when the scheduler died: {line}")


if __name__ == "__main__":
    main()
