"""Test the pipeline process of the service: it builds like the command, may crash, and is ended in time."""

import os
import signal
import time
from pathlib import Path

import pytest

from testkit.study import write_phantom
from training.data.cache import open_cache
from training.errors import StudyError
from training.study import pipeline_process
from training.study.building import find_pipeline, make_order
from training.study.pipeline_process import PipelineProcess


@pytest.fixture
def builder():
    made = PipelineProcess()
    yield made
    made.close()


def order(run, folder: Path, name: str, source: Path):
    (folder / name).mkdir()
    return make_order(run, source, folder / name)


def test_a_process_builds_several_studies_and_is_replaced_if_killed(run, builder, tmp_path):
    files = write_phantom(tmp_path / "dicom", keep=2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "note.txt").write_text("no DICOM")
    first = open_cache(builder.build(order(run, tmp_path, "1", files[0].parent), 100))
    process = builder.start()
    with pytest.raises(StudyError, match="none of its files is a CT slice"):
        builder.build(order(run, tmp_path, "2", tmp_path / "empty"), 100)
    second = open_cache(builder.build(order(run, tmp_path, "3", files[0].parent), 100))
    assert builder.start() is process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    third = open_cache(builder.build(order(run, tmp_path, "4", files[0].parent), 100))
    assert builder.start() is not process
    assert first.num_slices == second.num_slices == third.num_slices == 2


def pipeline_that(does: str, path: Path) -> str:
    path.write_text(f'#!/bin/sh\nif [ "$1" = attend ]; then {does}; fi\nexec {find_pipeline()} "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_a_study_that_crashes_it_is_built_by_a_worker(run, builder, tmp_path, monkeypatch):
    files = write_phantom(tmp_path / "dicom", keep=2)
    fake = pipeline_that("read line; kill -9 $$", tmp_path / "pipeline")
    monkeypatch.setattr(pipeline_process, "find_pipeline", lambda: fake)
    assert open_cache(builder.build(order(run, tmp_path, "1", files[0].parent), 100)).num_slices == 2


def test_it_is_ended_at_the_time_limit(run, builder, tmp_path, monkeypatch):
    files = write_phantom(tmp_path / "dicom", keep=1)
    fake = pipeline_that("exec sleep 600", tmp_path / "pipeline")
    monkeypatch.setattr(pipeline_process, "find_pipeline", lambda: fake)
    start = time.monotonic()
    with pytest.raises(StudyError, match="not read within 0 s; give one study at a time"):
        builder.build(order(run, tmp_path, "1", files[0].parent), 0.3)
    assert time.monotonic() - start < 300
    assert builder._process is None


def test_it_ends_with_the_service(builder):
    process = builder.start()
    builder.close()
    assert process.returncode is not None
