"""Shared by all tests: the real data, and the rules that CI skips no test and no test changes the SIGINT handler."""

import os
import signal
from pathlib import Path

import hypothesis
import pytest

# No deadline, because the duration of an example on a shared machine means nothing.
hypothesis.settings.register_profile("shared-machine", deadline=None)
hypothesis.settings.load_profile("shared-machine")

ROOT = Path(__file__).parent.parent
TEST_DATA = Path(os.environ.get("ICH_TEST_DATA", ROOT.parent / "shared" / "data"))
# The slowest files, in descending order, run first, so that no worker is left with one at the end.
LONGEST = (
    "test_slurm.py",
    "test_crash.py",
    "test_cluster.py",
    "test_engine.py",
    "test_power.py",
    "test_kernel.py",
    "test_learning.py",
    "test_tracking_server.py",
    "test_loggers.py",
    "test_end_to_end.py",
    "test_dicom_out.py",
    "test_kinds_of_runs.py",
    "test_train_cli.py",
    "test_several_processes.py",
    "test_resume.py",
    "test_gpu_benchmark.py",
    "test_loop.py",
    "test_report.py",
    "test_degenerate.py",
    "test_series_run.py",
    "test_head_stops.py",
    "test_failures.py",
)
CTRL_C = signal.getsignal(signal.SIGINT)
# CI has no GPU either.
ALLOWED_SKIPS = ("needs a GPU",)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real DICOM files; tests that need it are skipped without it."""
    if not TEST_DATA.is_dir():
        pytest.skip(f"no real test data at {TEST_DATA}; set ICH_TEST_DATA")
    return TEST_DATA


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and os.environ.get("NO_SKIPS") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(allowed in reason for allowed in ALLOWED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped, although NO_SKIPS is set: {reason}"
    if call.when == "teardown" and signal.getsignal(signal.SIGINT) is not CTRL_C:
        signal.signal(signal.SIGINT, CTRL_C)
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} changed the SIGINT handler, as importing dask_jobqueue does"
    return report
