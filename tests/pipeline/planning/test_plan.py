"""Plans, which depend only on listings, ledgers and settings, and their estimates."""

import json

import numpy as np
import pytest

from pipeline.cache.ledger import UNKNOWN_TIME, UNREAD, Entry, Ledger, digest_hex, empty_ledger, ledger_of, merge
from pipeline.dicom.records import Unit
from pipeline.planning import changes, plan
from pipeline.planning.estimate import Estimate, estimate
from pipeline.planning.jobs import HandedBack, ShardJob
from pipeline.planning.known import Known
from pipeline.planning.stages import ArraySpec, Fingerprints
from pipeline.source.listing import Listing
from testkit.small import Small, counted, run, slice_bytes, write, write_slices

WANTED = Fingerprints("reading", (ArraySpec(8, "aaaaaaaa"),), "table")
ROWS = 4


def listing(*files: tuple[str, int, int], ordered: bool = False) -> Listing:
    paths, sizes, times = zip(*files, strict=True) if files else ((), (), ())
    return Listing(list(paths), np.array(sizes, np.int64), np.array(times, np.int64), ordered)


def entry(path: str, size: int, mtime_ns: int, content: int, shard: int = 0, slot: int = 0, parts: int = 1) -> Entry:
    return Entry(path, size, mtime_ns, f"{content:032x}", shard, slot, parts)


def known(ledger: Ledger, **changes: object) -> Known:
    facts = {
        "committed": ledger, "reading": "reading", "table": "table", "committed_arrays": frozenset({"8-aaaaaaaa"}),
        "ledger": ledger, "arrays": {}, "pending": {}, "done": frozenset(), "next_shard": 5,
    }  # fmt: skip
    return Known(**{**facts, **changes})


def resolve(there: Listing, ledger: Ledger, contents: dict[str, tuple[int, int, int]]) -> changes.Resolved:
    """Resolve the difference, given contents as path -> (size, mtime_ns, content)."""
    line_of = {path: line for line, path in enumerate(there.paths)}
    found = {line_of[p]: changes.Content(size, time, (0, content)) for p, (size, time, content) in contents.items()}
    difference = changes.compare(there, ledger)
    assert {there.paths[line] for line in difference.lines_to_read()} == set(contents)
    return changes.resolve(there, ledger, difference, found)


def make(there: Listing, resolved: changes.Resolved, what: Known, wanted: Fingerprints = WANTED) -> plan.Plan:
    return plan.make(there, what, resolved, wanted, ROWS)


# --- changed files -------------------------------------------------------------------------------------------------


def test_files_with_equal_size_and_time_are_not_read():
    ledger = ledger_of([entry("a", 10, 1, 1), entry("b", 20, 2, 2)])
    resolved = resolve(listing(("a", 10, 1), ("b", 20, 2)), ledger, {})
    assert resolved.fresh == []
    assert resolved.kept.paths == ["a", "b"]


def test_content_decides_if_the_time_differs_or_is_unknown():
    ledger = ledger_of([entry("a", 10, 1, 1), entry("b", 10, 2, 2), entry("c", 10, UNKNOWN_TIME, 3)])
    there = listing(("a", 10, 9), ("b", 10, 9), ("c", 10, 3))
    resolved = resolve(there, ledger, {"a": (10, 9, 1), "b": (10, 9, 8), "c": (10, 3, 3)})
    assert [there.paths[line] for line in resolved.fresh] == ["b"]
    assert (resolved.touched, len(resolved.changed)) == (2, 1)
    assert dict(zip(resolved.kept.paths, resolved.kept.mtimes_ns.tolist(), strict=True)) == {"a": 9, "c": 3}


def test_a_file_with_another_size_has_changed_without_being_read():
    ledger = ledger_of([entry("a", 10, 1, 1)])
    assert resolve(listing(("a", 11, 1)), ledger, {}).changed == {0}


def test_a_rename_needs_equal_size_time_and_content():
    ledger = ledger_of([entry("a", 10, 1, 1, slot=3), entry("b", 10, 2, 2)])
    there = listing(("x", 10, 1), ("y", 10, 2), ("z", 10, 7))
    resolved = resolve(there, ledger, {"x": (10, 1, 1), "y": (10, 2, 9)})
    assert resolved.renamed == [("a", "x")]
    assert resolved.vanished == ["b"]
    assert [there.paths[line] for line in resolved.fresh] == ["y", "z"]
    assert resolved.kept.slots.tolist() == [3]


def test_two_identical_renamed_files_keep_their_rows():
    ledger = ledger_of([entry("a", 10, 1, 1, slot=0), entry("b", 10, 1, 1, slot=1)])
    resolved = resolve(listing(("x", 10, 1), ("y", 10, 1)), ledger, {"x": (10, 1, 1), "y": (10, 1, 1)})
    assert sorted(resolved.kept.slots.tolist()) == [0, 1]
    assert resolved.vanished == []


def test_an_unreadable_file_is_read_again_and_stays_rejected_if_that_fails():
    ledger = ledger_of([Entry("a", 0, UNKNOWN_TIME, UNREAD, 0, 0, 1)])
    difference = changes.compare(listing(("a", 10, 1)), ledger)
    assert difference.lines_to_read() == [0]
    assert changes.resolve(listing(("a", 10, 1)), ledger, difference, {}).fresh == []
    content = {0: changes.Content(10, 1, (0, 5))}
    assert changes.resolve(listing(("a", 10, 1)), ledger, difference, content).fresh == [0]


def test_a_ledger_survives_encoding():
    ledger = ledger_of([entry("b/ü.dcm", 10, 1, 2**100 + 7, 3, 4, 5), entry("a\udce9.dcm", 0, -1, 0)])
    again = Ledger.decode(ledger.encode())
    assert again.paths == ledger.paths
    assert digest_hex(again.digests[1]) == f"{2**100 + 7:032x}"
    assert (again.shards.tolist(), again.slots.tolist(), again.parts.tolist()) == ([0, 3], [0, 4], [1, 5])
    assert len(Ledger.decode(empty_ledger().encode())) == 0
    assert merge(ledger, ledger_of([entry("b/ü.dcm", 11, 2, 1)])).sizes.tolist() == [0, 11]


# --- tasks ---------------------------------------------------------------------------------------------------------


def test_new_files_are_assigned_to_new_shards_from_the_first_free_number():
    there = listing(*((f"{number}", 10, 1) for number in range(6)))
    resolved = resolve(there, empty_ledger(), {})
    made = make(there, resolved, known(empty_ledger()))
    assert [job.shard for job in made.jobs] == [5, 6]
    assert [len(job.units) for job in made.jobs] == [4, 2]
    assert sorted(path for job in made.jobs for path in job.paths()) == there.paths
    assert [path for job in made.jobs for path in job.paths()] == plan.shuffled(there.paths)
    assert made.reasons == ("6 new files are converted",)


def test_an_archive_is_read_in_its_order():
    there = listing(("z", 1, 1), ("a", 1, 1), ordered=True)
    made = make(there, resolve(there, empty_ledger(), {}), known(empty_ledger()))
    assert made.jobs[0].paths() == ["z", "a"]


def test_an_up_to_date_cache_needs_no_commit():
    ledger = ledger_of([entry("a", 10, 1, 1)])
    there = listing(("a", 10, 1))
    made = make(there, resolve(there, ledger, {}), known(ledger))
    assert not made.commit
    assert made.jobs == ()


def test_an_array_is_added_to_shards_that_lack_it():
    ledger = ledger_of([entry("a", 10, 1, 1, 0), entry("b", 10, 1, 2, 1), entry("c", 10, 1, 3, 2, 0, parts=2)])
    there = listing(("a", 10, 1), ("b", 10, 1), ("c", 10, 1))
    added = ArraySpec(12, "bbbbbbbb")
    wanted = Fingerprints("reading", (*WANTED.arrays, added), "table")
    has = {0: frozenset({"8-aaaaaaaa", "12-bbbbbbbb"}), 1: frozenset({"8-aaaaaaaa"}), 2: frozenset(), 3: frozenset()}
    made = make(there, resolve(there, ledger, {}), known(ledger, arrays=has), wanted)
    assert [(job.shard, job.adds_arrays, job.paths(), job.arrays) for job in made.jobs] == [
        (1, True, ["b"], (added,)),
        (2, True, ["c"], wanted.arrays),
        (3, True, ["c"], wanted.arrays),
    ]


def test_an_interrupted_build_resumes_its_plan():
    pending = {3: (Unit(0, "a"), Unit(1, "b")), 4: (Unit(0, "c"), Unit(1, "gone"))}
    there = listing(("a", 10, 1), ("b", 10, 1), ("c", 10, 1), ("d", 10, 1))
    left = ledger_of([entry("a", 10, 1, 1, 3, 0), entry("b", 10, 1, 2, 3, 1)])
    what = known(
        left, reading=None, table=None, pending=pending, done=frozenset({3}), arrays={3: frozenset({"8-aaaaaaaa"})}
    )
    made = make(there, resolve(there, left, {}), what)
    assert [(job.shard, job.paths()) for job in made.jobs] == [(4, ["c"]), (5, ["d"])]
    assert set(made.pending) == {3, 4, 5}, "finished shards stay in the plan, in case this build is interrupted too"
    assert made.reasons[0] == "a build was interrupted and is resumed: 1 shard is left"


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([("a", 3), ("b", 2), ("c", 1)], [[("a", 0, 3)], [("b", 0, 2), ("c", 0, 1)]]),
        ([("a", 9), ("b", 4)], [[("b", 0, 4)], [("a", 0, 4)], [("a", 4, 8)], [("a", 8, 9)]]),
        ([("a", 3), ("a", 3)], [[("a", 0, 3)]]),
    ],
)
def test_files_with_many_frames_get_shards_of_their_own(frames, expected):
    back = [HandedBack(Unit(0, path, "why"), number, "d") for path, number in frames]
    placed = plan.place_frames(back, 7, ROWS)
    assert list(placed) == list(range(7, 7 + len(expected)))
    assert [[(unit.path, unit.first, unit.stop) for unit in units] for units in placed.values()] == expected
    assert all(unit.slot == slot for units in placed.values() for slot, unit in enumerate(units))


# --- the command ---------------------------------------------------------------------------------------------------


def test_plan_prints_reasons_and_writes_nothing(tmp_path):
    small = Small(tmp_path)
    write_slices(small.src, range(3))
    assert small.plan().stdout.splitlines()[0] == "first build: 3 files"
    assert not small.out.exists()
    small.build()
    write(small.src / "003.dcm", slice_bytes(3))
    (small.src / "000.dcm").unlink()
    small.level = 60
    before = {path: path.stat().st_mtime_ns for path in small.out.rglob("*")}
    with counted() as work:
        said = small.plan().stdout
    assert said.splitlines()[:-1] == [
        "1 new file is converted",
        "1 file is gone: --prune removes the slices",
        "size 8 is new or its windows have changed: 1 shard is converted for it",
    ]
    assert not work.read
    assert before == {path: path.stat().st_mtime_ns for path in small.out.rglob("*")}
    small.build("--prune")
    assert small.plan(code=0).stdout == "nothing to do: the cache is up to date\n"
    assert json.loads(small.plan("--json", code=0).stdout)["work_pending"] is False
    assert run("build", *small.options(), "--dry-run").stdout == "nothing to do: the cache is up to date\n"


# --- estimates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sizes", "rate"), [((224,), 2275), ((380,), 1211), ((224, 380), 981)])
def test_the_estimate_agrees_with_the_benchmarks(sizes, rate):
    arrays = tuple(ArraySpec(size, "aaaaaaaa") for size in sizes)
    jobs = [ShardJob(0, tuple(Unit(slot, str(slot)) for slot in range(100)), arrays)] * 75
    found = estimate(jobs, channels=3)
    assert found.slices == 7500
    assert found.core_seconds == pytest.approx(7500 / rate, rel=0.02)
    assert found.disk_bytes == pytest.approx(7500 * 0.4 * 3 * sum(size**2 for size in sizes), rel=0.02)


def test_plan_estimates_disk_and_time_unless_there_is_nothing_to_do(tmp_path):
    small = Small(tmp_path)
    write_slices(small.src, range(3))
    assert "about 3 slices: less than 1 MB on disk, seconds with" in small.plan().stdout
    small.build()
    assert "about" not in small.plan(code=0).stdout
    assert (
        Estimate(752_803, 45_000_000_000, 4 * 3600)
        .as_line(2)
        .startswith("about 752,803 slices: 45.0 GB on disk, 2.0 h with 2 cores")
    )
    assert " 9 min " in Estimate(1, 1, 540).as_line(1)
    assert " 45 s " in Estimate(1, 1, 45).as_line(1)
