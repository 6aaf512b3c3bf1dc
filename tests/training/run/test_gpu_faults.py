"""Test how the GPU benchmark reports faults: parts that raise, hang, wait for the device, or return NaN."""

import contextlib
import json
import math
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import runs, syncs
from benchmarks.gpu.checks import Report, line_of
from benchmarks.gpu.repeats import Plan, measure_repeats
from testkit.tiny_run import HERE, runtime


def test_a_figure_below_the_target_fails_and_so_does_a_part_that_raises(tmp_path):
    report = Report(tmp_path / "out.json", seconds=100)
    report.at_least("b", "ratio", 0.96, 0.97)
    report.at_least("b", "ratio", 0.97, 0.97)
    report.below("b", "share", 3.0, 3)
    report.fact("b", "rate", 12345.6, "images/s")
    report.do("c", "fails", 10, lambda: 1 / 0)
    report.do("d", "too long", 1000, lambda: pytest.fail("was begun"))
    assert [check.passed for check in report.checks] == [False, True, False, None, False, None, False]
    assert not json.loads((tmp_path / "out.json").read_text())["passed"]
    assert line_of(report.checks[3]).endswith("12,346 images/s")
    assert "ZeroDivisionError" in line_of(report.checks[4])
    assert line_of(report.checks[-1]).startswith("FAIL")


def test_a_part_that_takes_too_long_is_cut_off_and_so_is_everything_at_the_end(tmp_path, monkeypatch):
    report, over = Report(tmp_path / "out.json", seconds=100), threading.Event()
    report.do("c", "hangs", 0.1, lambda: time.sleep(20))
    report.do("d", "around", 30, lambda: report.do("e", "hangs within", 0.1, lambda: time.sleep(20)))
    assert [check.passed for check in report.checks] == [False, None, False, None, None]
    assert "cut off after 0 s" in line_of(report.checks[0])
    monkeypatch.setattr(os, "_exit", lambda code: over.set() if code else None)
    report.seconds = 0
    with report.ends_in_time():
        assert over.wait(20)
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["checks"][-1]["name"] == "everything"
    assert not content["finished"]
    assert not content["passed"]


def test_an_error_within_a_part_does_not_end_the_rest_of_it(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access")

    done = []
    monkeypatch.setattr(gpu.rates, "bench", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(gpu.rates, "measure_rates", lambda *_, **__: 1.0)
    for module, name in ((gpu.runs, "measure_agreement"), (gpu.syncs, "measure_syncs"), (gpu.runs, "measure_fit")):
        monkeypatch.setattr(module, name, fails)
    monkeypatch.setattr(gpu.Bench, "cache", lambda *_: tmp_path)
    for module, name in ((gpu.syncs, "measure_gaps"), (gpu.rates, "measure_evaluation")):
        monkeypatch.setattr(module, name, lambda *_, of=name: done.append(of))
    monkeypatch.setattr(gpu.runs, "measure_distributed", lambda *_: done.append)
    report = Report(tmp_path / "out.json")
    at = gpu.Bench(report, tmp_path, gpu.FULL, HERE, runtime(), {})
    gpu.part_b(at, gpu.FULL[0], compiled=False)
    gpu.part_d(at)
    assert done == ["measure_gaps", "measure_evaluation", 1.0]
    assert [check.part for check in report.failed] == ["a", "c", "d"]
    report.do("b", "hangs", 0.1, lambda: slow(report))
    assert [check.name for check in report.failed[3:]] == ["hangs"]


def slow(report):
    with report.attempt("c", "within"):
        time.sleep(20)


HANGS = """
import ctypes, pathlib, sys
from benchmarks.gpu import checks
checks.LATEST_S = 0.3
report = checks.Report(pathlib.Path(sys.argv[1]), seconds=0.2)
with report.ends_in_time():
    report.fact("b", "rate", 1.0)
    ctypes.PyDLL(None).sleep(30)  # with the GIL
"""


def test_a_hang_that_holds_the_gil_is_ended_too(tmp_path):
    out = tmp_path / "out.json"
    done = subprocess.run([sys.executable, "-c", HANGS, out], cwd=gpu.ROOT, capture_output=True, text=True, timeout=25)
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert [check["name"] for check in json.loads(out.read_text())["checks"]] == ["rate"]


def test_a_wait_of_the_host_is_reported_with_its_lines(monkeypatch):
    """PyTorch raises or warns, depending on its mode, if an operation waits for a GPU."""
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(syncs, "wait", lambda _: None)

    class Waits:
        device = torch.device("cuda")
        watch = SimpleNamespace(log_pending=lambda: None)

        def step_from_cache(self):
            if modes[-1:] == ["error"]:
                raise RuntimeError("called a synchronizing CUDA operation")
            if modes[-1:] == ["warn"]:
                warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    report = Report()
    syncs.measure_syncs(report, Waits(), 10)
    assert modes == ["error", "default", "warn", "default"]
    assert [check.passed for check in report.checks] == [False]
    assert f"{Path(__file__).name}:" in report.checks[0].figure
    assert "(3 in 3 steps)" in report.checks[0].figure


def test_numbers_missing_on_one_device_are_a_difference():
    nan = float("nan")
    here = torch.tensor([1.0, nan, 200.0])
    assert runs.difference(torch.tensor([1.5, nan, 201.0]), here) == 0.5
    assert runs.difference(torch.tensor([1.0, 0.0, 200.0]), here) == math.inf
    assert runs.difference(torch.tensor([nan, nan, 200.0]), here) == math.inf


def test_processes_that_are_cut_off_do_not_continue(tmp_path, monkeypatch):
    class Hangs:
        killed = 0

        def communicate(self, timeout):
            raise subprocess.TimeoutExpired("run", timeout)

        def kill(self):
            Hangs.killed += 1

    monkeypatch.setattr(Plan, "spawn", lambda *_: Hangs())
    with pytest.raises(subprocess.TimeoutExpired):
        measure_repeats(Report(), tmp_path, Plan(tmp_path, "cpu", "resnet18"))
    assert Hangs.killed == 4
