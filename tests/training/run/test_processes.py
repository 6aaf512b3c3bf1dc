"""Test that every probability and score is bit-identical with 1, 2 and 4 processes."""

import json
import os
import socket
from pathlib import Path

import pytest

from testkit.fake_cache import write_cache
from testkit.tiny_run import SPAWNED, runtime, settings, task, train
from training.data.cache import open_cache
from training.report.report import write_report
from training.run.distributed import join_processes
from training.run.inference import VIEWS
from training.run.job import evaluate
from training.run.runs import open_run
from training.run.task import Task

KINDS = ("predictions", "scores", "thresholds", "calibration")


def in_process(rank: int, count: int, port: int, run: Path, cache: Path) -> None:
    """Evaluate as one of `count` processes that torchrun started."""
    import torch

    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    with join_processes("cpu") as processes:
        for subset, tta in (("validation", True), ("test", True)):
            evaluate(Task(open_run(run), open_cache(cache), runtime(), processes), subset, tta=tta)


def files_of(count: int, run: Path, cache: Path) -> dict[str, bytes]:
    """Return the files written by `count` processes: scores, predictions, thresholds and calibration."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    written = [file for kind in KINDS for file in run.glob(f"{kind}_*")]
    for file in written:
        file.unlink()
    started = [SPAWNED.Process(target=in_process, args=(rank, count, port, run, cache)) for rank in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * count
    return {file.name: file.read_bytes() for kind in KINDS for file in sorted(run.glob(f"{kind}_*"))}


def test_every_file_is_the_same_at_1_2_and_4_processes(tmp_path: Path) -> None:
    """Evaluate validation and test with TTA, in which a process has a short last batch, or none."""
    cache = write_cache(tmp_path / "cache.zarr", patients=12, slices=5).path
    config = settings(epochs=1, batch_size=6, split_fractions=(0.35, 0.4, 0.25))
    run = train(tmp_path / "run", cache, config).path
    alone = files_of(1, run, cache)
    slices = [len(alone[f"predictions_{subset}_tta.csv"].splitlines()) - 1 for subset in ("validation", "test")]
    assert slices == [25, 15]  # 5 batches and 3, the last ones short
    scores = json.loads(alone["scores_test_tta.json"])
    assert {"classes", "intervals", "at_threshold", "calibrated"} <= scores.keys()
    # The first view alone scores the same as an evaluation without TTA.
    plain = evaluate(task(open_run(run), open_cache(cache)), "test", tta=False)
    assert tuple(scores["views"]) == VIEWS
    assert scores["views"][VIEWS[0]] == pytest.approx(plain["weighted_log_loss"], abs=1e-12)
    assert len(set(scores["views"].values())) == len(VIEWS)
    write_report(run, open_cache(cache))
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f"{VIEWS[1]} {scores['views'][VIEWS[1]]:.4f}" in page
    for count in (2, 4):
        assert files_of(count, run, cache) == alone
