"""Kill commands at given system calls with strace, while a reader reads the cache: for tests and a benchmark."""

import contextlib
import ctypes
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from testkit.small import LONG_AGO_NS, MADE_UP, Deck, Small, frames_bytes, run, write

LEVELS = (40, 45, 50, 55, 60, 65)
# A reader may use a replaced commit for this long.
GC_AGE = "4s"
PAUSE_S = 0.02  # between two views: without, a reader takes a whole core
PR_SET_PTRACER, PR_SET_PTRACER_ANY = 0x59616D61, -1


def strace_works() -> bool:
    """Return whether strace can kill a process at a system call here."""
    if not shutil.which("strace"):
        return False
    return run_killed(lambda: os.rename("/nowhere", "/nowhere"), "rename", 1) is None


def run_killed(command: Callable[[], object], syscall: str, when: int) -> int | None:
    """Run a command in a forked process that is killed when it enters its `when`-th call of `syscall`.

    Returns:
        The exit code, or None if it was killed.
    """
    waiting, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        _run_traced(waiting, command)
    os.close(waiting)
    inject = f"inject={syscall}:signal=KILL:when={when}"
    strace = subprocess.Popen(
        ["strace", "-f", "-qq", "-p", str(pid), "-o", os.devnull, "-e", f"trace={syscall}", "-e", inject],
        stderr=subprocess.DEVNULL,
    )
    while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text() and strace.poll() is None:
        time.sleep(0.001)
    os.write(go, b"g")
    os.close(go)
    status = os.waitpid(pid, 0)[1]
    strace.wait()
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _run_traced(waiting: int, command: Callable[[], object]) -> None:
    code = 99
    try:
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0)
        null = os.open(os.devnull, os.O_RDWR)
        for handle in (0, 1, 2):
            os.dup2(null, handle)
        os.read(waiting, 1)
        with contextlib.suppress(OSError):
            command()
        code = 0
    except SystemExit as exit:
        code = int(exit.code or 0)
    finally:
        os._exit(code)


# --- the reader ----------------------------------------------------------------------------------------------------


def read_view(root: Path, valid: dict[str, set[str]]) -> tuple[str, list[str]]:
    """Read the current commit like a training job, and check it.

    Args:
        root: folder of the cache.
        valid: SOP Instance UID -> digests of all images that it may have.

    Returns:
        The id of the commit, and descriptions of problems.
    """
    import zarr

    group = zarr.open_group(root, mode="r")
    attributes = dict(group.attrs)
    table = (root / attributes["metadata"]["file"]).read_text()
    lines = [line.split(",") for line in table.splitlines()[1:]]
    problems = []
    if len(lines) != attributes["num_slices"]:
        problems.append(f"{len(lines)} lines instead of {attributes['num_slices']}")
    for path in attributes["sizes"].values():
        array = group[path]
        for line in lines:
            digest = xxhash.xxh3_128_hexdigest(array[int(line[0])].tobytes())
            if digest not in valid[line[2]]:
                problems.append(f"commit {attributes['commit']}: row {line[0]} of {path} is not {line[2]}")
    return attributes["commit"], problems


def _keep_reading(root: Path, valid: dict[str, set[str]], ready: Any, stop: Any, results: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    views, commits, problems = 0, set(), []
    while not stop.is_set():
        try:
            commit, wrong = read_view(root, valid)
            commits.add(commit)
            problems += wrong
        except Exception as error:
            problems.append(f"{type(error).__name__}: {error}")
        views += 1
        ready.set()
        time.sleep(PAUSE_S)
    results.put((views, len(commits), problems[:10], len(problems)))


@dataclass
class Seen:
    """The result of a reader.

    Attributes:
        views: how often it read the cache.
        commits: number of different commits.
        problems: the first few problems.
        wrong: number of problems.
    """

    views: int = 0
    commits: int = 0
    problems: list[str] = field(default_factory=list)
    wrong: int = 0


@contextlib.contextmanager
def reader(root: Path, valid: dict[str, set[str]]) -> Iterator[Seen]:
    """Read the cache repeatedly in another process."""
    spawn = multiprocessing.get_context("spawn")
    ready, stop, results, seen = spawn.Event(), spawn.Event(), spawn.Queue(), Seen()
    process = spawn.Process(target=_keep_reading, args=(root, valid, ready, stop, results))
    process.start()
    ready.wait(60)
    try:
        yield seen
    finally:
        stop.set()
        seen.views, seen.commits, seen.problems, seen.wrong = results.get()
        process.join()


# --- a cache whose commands are killed -----------------------------------------------------------------------------


@dataclass
class Victim:
    """A cache whose commands are killed; after each kill, running the same command must give the correct content."""

    small: Small
    deck: Deck = MADE_UP
    expected: dict[str, str] = field(default_factory=dict)
    kills: int = 0
    turn: int = 0

    @staticmethod
    def make(folder: Path, deck: Deck = MADE_UP, slices: int = 12) -> "Victim":
        """Build a cache of slices of a deck, a file with many frames and a text file."""
        labels = {deck.uid(number): number % 2 for number in range(slices + 1)}
        small = Small(folder, sizes=(8, 12), rows=8, labels=labels)
        deck.write(small.src, range(slices))
        write(small.src / "notes.txt", b"not DICOM")
        write(small.src / "frames.dcm", frames_bytes(30, 11))
        small.build()
        return Victim(small, deck)

    @property
    def extra(self) -> bytes:
        """A slice that is added and removed."""
        return self.deck.slice(len(self.small.labels or ()) - 1)

    # --- changes, each with the command that is then killed ---

    def begin(self) -> list[object]:
        """Remove the cache, for a first build."""
        shutil.rmtree(self.small.out)
        return ["build", *self.small.options(), "--workers", 0]

    def change(self) -> list[object]:
        """Change one file, and add or remove another."""
        self.turn += 1
        write(self.small.src / "003.dcm", self.deck.slice(3, self.turn % 2), LONG_AGO_NS + self.turn * 10**9)
        extra = self.small.src / "extra.dcm"
        if extra.exists():
            extra.unlink()
        else:
            write(extra, self.extra)
        return ["build", *self.small.options(), "--workers", 0, "--prune"]

    def rewindow(self) -> list[object]:
        """Change a window, mostly to one whose array has been removed."""
        run("gc", self.small.out, "--older-than", GC_AGE, "--yes")
        self.small.level = LEVELS[(LEVELS.index(self.small.level) + 1) % len(LEVELS)]
        return ["build", *self.small.options(), "--workers", 0]

    def relabel(self) -> list[object]:
        assert self.small.labels
        self.small.labels = {uid: 1 - label for uid, label in self.small.labels.items()}
        return ["build", *self.small.options(), "--workers", 0]

    def collect(self) -> list[object]:
        run(*self.change())
        return ["gc", self.small.out, "--older-than", "0s", "--yes"]

    def damage(self) -> list[object]:
        """Damage shards, records and a copy. No older commits are kept, so the source has everything for a repair."""
        run("gc", self.small.out, "--older-than", "0s", "--yes")
        out = self.small.out
        images = sorted(out.glob("images/*/c/*/0/0/0"))
        images[self.turn % len(images)].write_bytes(b"rot")
        sorted(out.glob("sums/*/c/*/0/0"))[0].unlink()
        records = sorted(out.glob(".pipeline/shards/*.json"))
        records[self.turn % len(records)].unlink()
        (out / "metadata.csv").unlink()
        next(out.glob("tables/*.csv")).write_bytes(b"rot")
        self.turn += 1
        return ["verify", out, "--repair", "--src", self.small.src]

    # --- kill, run again, check ---

    def kill_at_each(self, act: Callable[[], list[object]], syscall: str, step: int = 1) -> int:
        """Kill a command at call 1, 1 + step, ... of `syscall`, until it ends before that; return the kills."""
        for number in itertools.count():
            command = act()
            code = run_killed(lambda: run(*command), syscall, 1 + number * step)  # noqa: B023
            if code is not None:
                assert code == 0, command
                self.check()
                return number
            self.kills += 1
            finished = self._finished_shards()
            run(*command)
            again = {path for path, node in finished.items() if path.exists() and path.stat().st_ino != node}
            assert not again or command[0] == "verify", f"built twice: {again}"
            self.check()

    def _finished_shards(self) -> dict[Path, int]:
        out, found = self.small.out, {}
        for record in out.glob(".pipeline/shards/*.json"):
            for name in json.loads(record.read_bytes().partition(b"\n")[2])["arrays"]:
                path = out / "images" / name / "c" / record.stem / "0" / "0" / "0"
                if path.exists():
                    found[path] = path.stat().st_ino
        return found

    def check(self) -> None:
        """Check that nothing is damaged, and that the content is that of a clean build."""
        said = self.small.verify().stdout
        assert "damaged:" not in said
        assert self.small.digest() == self._expected()

    def _expected(self) -> str:
        small = self.small
        files = sorted((path.name, path.read_bytes()) for path in small.src.iterdir())
        state = xxhash.xxh3_128_hexdigest(repr((files, small.level, small.labels)).encode())
        if state not in self.expected:
            self.expected[state] = small.clean_digest(small.folder / f"clean-{state}")
            shutil.rmtree(small.folder / f"clean-{state}")
        return self.expected[state]

    def valid_images(self, levels: Sequence[int]) -> dict[str, set[str]]:
        """Return SOP Instance UID -> digests of all images that the slice may have, from clean builds."""
        valid: dict[str, set[str]] = {}
        for level, content in itertools.product(levels, (0, 1)):
            folder = self.small.folder / f"valid-{level}-{content}"
            small = Small(folder, level, self.small.sizes, self.small.rows)
            shutil.copytree(self.small.src, small.src)
            write(small.src / "003.dcm", self.deck.slice(3, content))
            write(small.src / "extra.dcm", self.extra)
            small.build()
            table = [line.split(",") for line in (small.out / "metadata.csv").read_text().splitlines()[1:]]
            for record in small.out.glob(".pipeline/shards/*.json"):
                arrays = json.loads(record.read_bytes().partition(b"\n")[2])["arrays"].values()
                for line in table:
                    if int(line[0]) // small.rows == int(record.stem):
                        digests = {array["digests"][int(line[0]) % small.rows] for array in arrays}
                        valid.setdefault(line[2], set()).update(digests)
            shutil.rmtree(folder)
        return valid
