"""The loop of the campaigns that damage small inputs: choose one, damage it, judge the outcome, count."""

import argparse
import collections
import random
import time
from collections.abc import Callable, Mapping, Sequence

HANG_SECONDS = 10
FINE = ("read", "members unreadable", "refused", "fewer members")

Damage = Callable[[bytearray, random.Random], None]


def campaign(
    description: str | None, seeds: Mapping[str, bytes], damages: Sequence[Damage], judge: Callable[[bytes], str]
) -> int:
    """Judge as many mutants as the command line says, and print the results.

    Args:
        seeds: name -> an undamaged input.
        judge: returns the outcome of a mutant. Outcomes other than `FINE`, and any exception, are failures.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    outcomes: collections.Counter[str] = collections.Counter()
    failures: dict[int, str] = {}
    kinds = list(seeds.items())
    for number in range(options.mutants):
        rng = random.Random(f"{options.seed}:{number}")
        name, data = rng.choice(kinds)
        mutant = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            rng.choice(damages)(mutant, rng)
        found = timed(judge, bytes(mutant))
        outcomes[f"{name}: {found if found in FINE else 'failed'}"] += 1
        if found not in FINE:
            failures[number] = f"{name}: {found}"
    for outcome, count in sorted(outcomes.items()):
        print(f"  {outcome:30s} {count}")
    for number, what in list(failures.items())[:20]:
        print(f"  mutant {number}: {what}")
    print(f"{options.mutants} mutants, seed {options.seed}; failures: {len(failures)}")
    return 1 if failures else 0


def timed(judge: Callable[[bytes], str], mutant: bytes) -> str:
    """Return the outcome of a mutant, which may be an exception or a time-out."""
    started = time.perf_counter()
    try:
        found = judge(mutant)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    return found if time.perf_counter() - started <= HANG_SECONDS else f"longer than {HANG_SECONDS} s"
