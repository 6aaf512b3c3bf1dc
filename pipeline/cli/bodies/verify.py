"""The body of `verify`: name what is damaged, and with --repair repair it."""

from pathlib import Path

from tqdm import tqdm

from pipeline.cache.lock import lock, shared_lock
from pipeline.cache.paths import Cache
from pipeline.source.sources import open_source
from pipeline.tables import patients
from pipeline.terminal import print_error, print_line
from pipeline.upkeep.examination import Examination
from pipeline.upkeep.info import require_cache
from pipeline.upkeep.repair import repair
from pipeline.upkeep.repair_shards import Originals
from pipeline.upkeep.verify import examine


def verify(*, folder: Path, repair: bool, src: str | None, patient_key: Path | None, chosen: str) -> int:
    """Read everything, compare it with what was recorded, and name what is damaged or missing."""
    cache = Cache(folder)
    require_cache(cache)
    with lock(cache) if repair else shared_lock(cache) as token:
        with tqdm(unit=" shards", disable=None) as bar:

            def shard_done(shards: int) -> None:
                bar.total = shards
                bar.update(1)

            found = examine(cache, shard_done, chosen if repair else "")
        for damage in found.damages:
            print_line(f"damaged: {cache.root / str(damage)}")
        for path in found.unknown:
            print_line(f"left over: {path}")
        if not repair or not (found.damages or found.unknown):
            return _say_verified(cache, len(found.damages), len(found.records))
        return _repair(found, src, patient_key, str(token))


def _say_verified(cache: Cache, damages: int, shards: int) -> int:
    if damages:
        print_error(f"{_count(damages, 'damaged part')}; run: pipeline verify {cache} --repair --src DICOMS")
        return 1
    print_line(f"{cache}: {_count(shards, 'shard')} read, no damage found")
    return 0


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _repair(found: Examination, src: str | None, patient_key: Path | None, token: str) -> int:
    has_key = patient_key or patients.default_key_file().exists()
    key = patients.read_key(patient_key) if has_key else None
    done = repair(found, Originals(open_source(src) if src else None, key, token))
    for damage in done.repaired:
        print_line(f"repaired: {damage.path}")
    for path, uid, frame in done.lost:
        print_line(f"lost: {path}: slice {uid}{f', frame {frame}' if frame else ''}: a new commit leaves it out")
    for commit in done.dropped:
        print_line(f"dropped: commit {commit}, which referred to a lost slice")
    for found_at, place in done.aside:
        print_line(f"moved aside: {found_at} -> {place}")
    for damage in done.left:
        print_line(f"still damaged: {damage}")
    if done.left:
        print_error(f"{_count(len(done.left), 'damaged part')} left; {done.why_left or 'run the same command again'}")
    return 1 if done.left else 0
