"""Damage real DICOM files in thousands of ways and check that each gives a slice or a reject, never more.

    python benchmarks/fuzz.py --mutants 20000

Mutant I of a seed always has the same bytes; `--only I --save FILE` writes it to a file. Batches run in a child process
with limits, so that an abort, a hang or a memory bomb in a native decoder is reported and skipped.
"""

import argparse
import collections
import os
import random
import resource
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("ICH_TEST_DATA", ROOT.parent / "shared" / "data"))
LARGEST_SEED_BYTES = 2 << 20
HANG_SECONDS = 10
MEMORY_LIMIT_BYTES = 1 << 30
# The interpreter and its libraries map more than they use; this limit stops a bomb before it stops the machine.
ADDRESS_SPACE_BYTES = 6 << 30
# Bound on the HU of a slice, from the limits of slope and intercept with 16 bits.
HU_LIMIT = 100 * 65536 + 100_000


@dataclass
class Campaign:
    """The results of a campaign.

    Attributes:
        outcomes: reject code or "slice" -> mutants.
        failures: mutant -> what went wrong.
    """

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: dict[int, str] = field(default_factory=dict)
    slowest_seconds: float = 0.0
    peak_bytes: int = 0


def main() -> int:
    """Run the campaign and print the results; return 1 if anything died, hung or was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="judge one mutant in this process")
    parser.add_argument("--save", type=Path, help="write the mutant of --only to this file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    stop = options.first + options.mutants
    if options.child:
        return run_child(options.seed, options.first, stop)
    if options.only is not None:
        name, data = make_mutant(load_seeds(), options.seed, options.only)
        if options.save:
            options.save.write_bytes(data)
        print(name, len(data), judge(data))
        return 0
    campaign = run_campaign(options.seed, options.first, stop)
    report(campaign, options.mutants, options.seed)
    return 1 if campaign.failures or campaign.peak_bytes > MEMORY_LIMIT_BYTES else 0


def report(campaign: Campaign, mutants: int, seed: int) -> None:
    """Print the campaign's counts."""
    print(f"{mutants} mutants, seed {seed}, of {len(load_seeds())} files")
    for outcome, count in campaign.outcomes.most_common():
        print(f"  {outcome:20s} {count}")
    print(f"slowest {campaign.slowest_seconds:.2f} s; peak memory {campaign.peak_bytes / 2**20:.0f} MB")
    print(f"failures: {len(campaign.failures)}")
    for number, what in list(campaign.failures.items())[:20]:
        print(f"  mutant {number}: {what}")


def load_seeds() -> list[tuple[str, bytes]]:
    """Read the files to damage: the project's real data and the pydicom package's own test files.

    Files that give slices make up two thirds of the list, because files rejected by SOP class exercise little code.
    """
    import pydicom

    from pipeline.dicom.read import read_slices
    from pipeline.dicom.records import Slice
    from pipeline.planning.catalog import Reading

    folders = [DATA, Path(pydicom.__file__).parent / "data" / "test_files"]
    paths = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    seeds = [(path.name, path.read_bytes()) for path in paths if 0 < path.stat().st_size <= LARGEST_SEED_BYTES]
    reading = Reading(patient_ids="keep")
    accepted = [seed for seed in seeds if any(isinstance(item, Slice) for item in read_slices(seed[1], reading, None))]
    # One of the 28 similar slices is enough.
    accepted = [seed for seed in accepted if not seed[0][:2].isdigit()] + [
        seed for seed in accepted if seed[0] == "05.dcm"
    ]
    return seeds + accepted * (2 * len(seeds) // max(1, len(accepted)))


def make_mutant(seeds: list[tuple[str, bytes]], seed: int, number: int) -> tuple[str, bytes]:
    """Damage one of the files in one to four ways."""
    rng = random.Random(f"{seed}:{number}")
    name, original = rng.choice(seeds)
    data = bytearray(original)
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(DAMAGES)(data, rng)
    return name, bytes(data)


def _place(data: bytearray, rng: random.Random, width: int) -> int:
    """Choose an offset, half of the time in the header, otherwise anywhere."""
    end = max(1, len(data) - width)
    return rng.randrange(min(end, 8192)) if rng.random() < 0.5 else rng.randrange(end)


def flip_bits(data: bytearray, rng: random.Random) -> None:
    """Flip 1 to 16 single bits."""
    for _ in range(rng.randint(1, 16)):
        if data:
            data[_place(data, rng, 1)] ^= 1 << rng.randrange(8)


def truncate(data: bytearray, rng: random.Random) -> None:
    """Cut the end off."""
    del data[_place(data, rng, 1) :]


def drop_bytes(data: bytearray, rng: random.Random) -> None:
    """Take some bytes out of the middle."""
    at = _place(data, rng, 1)
    del data[at : at + rng.randint(1, 64)]


def repeat_bytes(data: bytearray, rng: random.Random) -> None:
    """Insert a copy of a piece of the file."""
    at, size = _place(data, rng, 1), rng.randint(1, 400)
    data[at:at] = data[at : at + size]


def write_extreme(data: bytearray, rng: random.Random) -> None:
    """Overwrite 2 or 4 bytes, which may be a length or Rows, with an extreme value."""
    value = rng.choice((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF, len(data)))
    packed = struct.pack(rng.choice("<>") + "L", value & 0xFFFFFFFF)[: rng.choice((2, 4))]
    at = _place(data, rng, 4)
    data[at : at + len(packed)] = packed


def edit_element(data: bytearray, rng: random.Random) -> None:
    """Change a byte of the tag, VR, length or value of an important element."""
    tags = (b"\x28\0\x10\0", b"\x28\0\x11\0", b"\x28\0\0\1", b"\x28\0\1\1", b"\x28\0\x03\1", b"\x28\0\x08\0")
    tags += (b"\x28\0\x52\x10", b"\x28\0\x53\x10", b"\xe0\x7f\x10\0", b"\x02\0\x10\0", b"\x20\0\x32\0", b"\x20\0\x37\0")
    at = data.find(rng.choice(tags))
    if at >= 0:
        at += rng.randrange(12)
        data[at : at + 1] = bytes([rng.randrange(256)])


DAMAGES = (flip_bits, truncate, drop_bytes, repeat_bytes, write_extreme, edit_element)


def judge(data: bytes) -> str:
    """Read a mutant; return "slice", or the code of its first reject.

    Raises:
        AssertionError: if a slice is invalid.
    """
    import numpy as np

    from pipeline.dicom.read import read_slices
    from pipeline.dicom.records import Reject
    from pipeline.dicom.rejects import REJECT_CODES
    from pipeline.planning.catalog import Reading

    outcome = ""
    for item in read_slices(data, Reading(repair="rsna_12bit_wrap"), b"k" * 32):
        if isinstance(item, Reject):
            assert item.code in REJECT_CODES, item.code
            outcome = outcome or item.code
            continue
        record, stored = item.record, item.stored
        assert stored.shape == (record.height, record.width), stored.shape
        assert stored.dtype in (np.int16, np.uint16), stored.dtype
        hu = [float(value) * record.slope + record.intercept for value in (stored.min(), stored.max())]
        assert all(abs(value) <= HU_LIMIT for value in hu), hu
        numbers = (record.position or ()) + (record.orientation or ())
        assert np.isfinite(numbers).all(), numbers
        outcome = "slice"
    assert outcome, "neither a slice nor a reject"
    return outcome


def run_child(seed: int, first: int, stop: int) -> int:
    """Judge mutants one after another, and print the start and outcome of each."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seeds = load_seeds()
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print("ready", base, flush=True)
    for number in range(first, stop):
        print("begin", number, flush=True)
        _, data = make_mutant(seeds, seed, number)
        started = time.perf_counter()
        try:
            outcome = judge(data)
        except Exception as error:
            outcome = f"! {type(error).__name__}: {error}".replace("\n", " ")
        seconds = time.perf_counter() - started
        print("end", number, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, outcome, flush=True)
    return 0


def run_campaign(seed: int, first: int, stop: int) -> Campaign:
    """Run mutants first to stop - 1 in child processes; a child that dies or hangs is replaced after its mutant."""
    campaign = Campaign()
    while first < stop:
        first = _run_one_child(campaign, seed, first, stop)
    return campaign


def _run_one_child(campaign: Campaign, seed: int, first: int, stop: int) -> int:
    """Run one child process and return the number of the mutant to continue with."""
    command = [sys.executable, __file__, "--child", "--seed", str(seed), "--first", str(first)]
    child = subprocess.Popen([*command, "--mutants", str(stop - first)], stdout=subprocess.PIPE)
    current = None
    for line in _lines(child):
        word, *rest = line.split(maxsplit=4)
        if word == "begin":
            current = int(rest[0])
        elif word == "end":
            number, seconds, peak_kb, outcome = int(rest[0]), float(rest[1]), int(rest[2]), rest[3]
            if outcome.startswith("!"):
                campaign.failures[number] = outcome[2:]
            campaign.outcomes["wrong" if outcome.startswith("!") else outcome] += 1
            campaign.slowest_seconds = max(campaign.slowest_seconds, seconds)
            campaign.peak_bytes = max(campaign.peak_bytes, peak_kb * 1024)
            current, first = None, number + 1
    if first >= stop and child.wait() == 0:
        return stop
    child.kill()
    status = child.wait()
    if current is None:
        raise RuntimeError(f"the child ended with {status} between mutants, before mutant {first}")
    campaign.failures[current] = f"no result within {HANG_SECONDS} s" if status == -9 else f"died with {status}"
    campaign.outcomes["hung" if status == -9 else "died"] += 1
    return current + 1


def _lines(child: subprocess.Popen) -> Iterator[str]:
    """Yield the lines of the child until it ends or prints nothing for too long."""
    assert child.stdout is not None
    descriptor, pending = child.stdout.fileno(), b""
    patience = 120  # imports and the first pass over the files
    while select.select([descriptor], [], [], patience)[0]:
        chunk = os.read(descriptor, 65536)
        if not chunk:
            return
        *whole, pending = (pending + chunk).split(b"\n")
        if whole:
            patience = HANG_SECONDS
        yield from (line.decode() for line in whole)


if __name__ == "__main__":
    sys.exit(main())
