"""The progress of a build counts files of unfinished shards, both in the bar and in lines."""

import io
import sys
from types import SimpleNamespace

import pytest

from pipeline.engine import progress
from pipeline.engine.progress import ShownProgress
from pipeline.planning import survey
from testkit.faulty import Faulty
from testkit.small import Small, run, write_slices

PLAN = SimpleNamespace(
    reasons=["first build: 100 files"], slices_expected=100, as_lines=lambda: ["first build: 100 files"]
)


def job(shard: int, files: int = 50) -> SimpleNamespace:
    return SimpleNamespace(shard=shard, units=[None] * files)


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_line_every_few_seconds_gives_the_rate_without_the_start(clock, capsys):
    with ShownProgress() as shown:
        shown.planned(PLAN)
        clock.now += 60  # workers start
        shown.files_begun(0, 1)
        clock.now += 30  # the first slice waits for its code to be compiled
        for files in range(2, 35):
            shown.files_begun(0, files)
            clock.now += 0.25
        shown.shard_done(job(0), SimpleNamespace(failed=2, other_files=3))
        clock.now += 6
        shown.files_begun(1, 1)
    first, second, *lines = capsys.readouterr().err.splitlines()
    assert (first, second) == ("first build: 100 files", "starting workers")
    assert lines == [
        "22 of 100 slices, 4 slices/s, 0 failed, 0 other files, 00:19 left",
        "50 of 100 slices, 3 slices/s, 2 failed, 3 other files, 00:14 left",
    ]


def test_the_bar_advances_within_a_shard_and_goes_back_if_its_worker_dies(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with ShownProgress() as shown:
        shown.planned(PLAN)
        stages, seen = [shown._bar.desc], []
        for shard, files in [(0, 1), (0, 31), (1, 21), (0, 6)]:
            shown.files_begun(shard, files)
            stages.append(shown._bar.desc)
            seen.append(shown._bar.n)
        shown.shard_done(job(0), SimpleNamespace(failed=0, other_files=4))
        shown.files_begun(0, 40)  # a late report
        seen.append(shown._bar.n)
    assert seen == [0, 30, 50, 25, 70]
    assert stages[:3] == ["starting workers", "compiling: ", ""]
    assert "failed=0, other files=4" in terminal.getvalue()


@pytest.mark.parametrize("workers", [0, 1])
def test_files_of_a_shard_are_reported_before_it_is_done(tmp_path, monkeypatch, workers):
    reports = []
    monkeypatch.setattr(survey, "open_source", lambda src: Faulty(src, pause_s=0.05))
    monkeypatch.setattr(ShownProgress, "files_begun", lambda self, shard, files: reports.append((shard, files)))
    small = Small(tmp_path, rows=32)
    write_slices(small.src, range(30))
    run("build", *small.options(), "--workers", workers)
    assert reports == sorted(reports)
    assert {shard for shard, _ in reports} == {0}
    assert 2 <= len(reports) <= (30 if workers == 0 else 15)


def test_a_build_without_workers_does_not_mention_them(tmp_path):
    small = Small(tmp_path, rows=32)
    write_slices(small.src, range(2))
    said = run("build", *small.options(), "--workers", 0).stderr
    assert "\ncompiling\n" in said
    assert "workers" not in said
