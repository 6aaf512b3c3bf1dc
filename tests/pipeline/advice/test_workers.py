"""Messages about workers and packages with advice: tests provoke each of them and follow its advice."""

import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import distributed
import numpy as np
import pydicom
import pytest

from pipeline import compiled
from pipeline.dicom import codecs
from pipeline.engine import cluster as engine_cluster
from pipeline.engine import context, preflight, versions
from pipeline.engine import run as engine_run
from pipeline.engine.task import _check_threads
from pipeline.errors import CacheError, CatalogError
from pipeline.library import render
from pipeline.planning.catalog import Window
from pipeline.source.sources import open_source
from pipeline.tables import patients
from testkit.advice import Case
from testkit.advised_builds import build, follow_build
from testkit.extras import assert_installs
from testkit.small import Small, run, slice_bytes, write, write_slices

# --- where tasks run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["--dashboard", "--performance-report"])
def test_dask_options_require_a_worker(word: str, tmp_path: Path) -> None:
    """The build is stopped before it starts workers, which would take seconds and is covered by other tests."""
    small = Small(tmp_path)
    write_slices(small.src, range(2))
    words = [word, *([tmp_path / "dask.html"] if word == "--performance-report" else [])]
    assert "give --workers 1 or more" in small.build(*words, code=2).stderr
    seen = []
    with patch("pipeline.cli.bodies.build.build_cache", lambda cache, *, workers, **_: seen.append(workers) or _stop()):
        options = [*build(small, *words), "--workers", 1]
        assert "stopped here" in run(*options, code=1).stderr
    assert seen[0].local == 1


def _stop() -> None:
    raise CacheError("stopped here")


@pytest.mark.parametrize("kind", ["address", "file"])
def test_a_build_succeeds_once_the_scheduler_is_started(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_cluster, "CONNECT_S", 0.5)
    small = Small(tmp_path)
    write_slices(small.src, range(2))
    file = tmp_path / "scheduler.json"
    where = {"address": ["--scheduler", "tcp://127.0.0.1:9"], "file": ["--scheduler-file", file]}[kind]
    advice = {"address": "start one, or correct the address", "file": "is `dask scheduler` running"}[kind]
    command = [word for word in build(small) if word not in ("--workers", 0)]
    assert advice in run(*command, *where, code=1).stderr
    with _cluster(threads=1) as cluster:
        if kind == "file":
            file.write_text(json.dumps(cluster.scheduler.identity()), "utf-8")
        else:
            where[1] = cluster.scheduler_address
        run(*command, *where)


def _cluster(threads: int) -> distributed.LocalCluster:
    return distributed.LocalCluster(
        n_workers=1, threads_per_worker=threads, processes=False, dashboard_address=None, protocol="tcp://"
    )


def test_workers_must_have_one_thread() -> None:
    def check(threads: int) -> None:
        with _cluster(threads) as cluster, cluster.get_client() as client:
            client.submit(_check_threads).result()

    with pytest.raises(CacheError, match="start it with --nthreads 1"):
        check(threads=2)
    check(threads=1)


@pytest.mark.parametrize(
    ("wrong", "advice", "right"),
    [
        ("{}", "takes the keys adapt, class, scale, settings; class is required", "class: X.Cluster\nscale: 1"),
        ("class: X.Cluster", "give either scale: N or adapt:", "class: X.Cluster\nscale: 1"),
        ("class: X.Cluster", "or adapt: {minimum: N, maximum: N}", "class: X.Cluster\nadapt: {minimum: 0, maximum: 2}"),
    ],
)
def test_the_description_of_a_cluster_is_corrected_as_advised(
    wrong: str, advice: str, right: str, tmp_path: Path
) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(wrong, "utf-8")
    with pytest.raises(CacheError) as refused:
        engine_cluster._read_description(file)
    assert advice in str(refused.value)
    file.write_text(right, "utf-8")
    assert engine_cluster._read_description(file)["class"] == "X.Cluster"


# --- checks of a worker ----------------------------------------------------------------------------------------------


@dataclass
class Checked:
    """A check of a worker that fails with advice, and passes after `correct`."""

    check: Callable[[], object]
    advice: str
    correct: Callable[[], object]


def _of_context(small: Small, **changes: Any) -> Callable[[], object]:
    """Return the check before a worker's first task."""
    about: dict[str, Any] = {"cache": small.cache, "token": "t", "source": open_source(str(small.src))} | changes
    unit = SimpleNamespace(slot=0, path="000.dcm")
    job: Any = SimpleNamespace(units=[unit], missing=set())
    return lambda: preflight.check_worker(SimpleNamespace(**about), job)  # type: ignore[arg-type]


def _another_numpy_version(small: Small, patched: pytest.MonkeyPatch) -> Checked:
    wanted = versions.library_versions()
    patched.setattr(preflight, "library_versions", lambda: wanted | {"numpy": "1.0"})
    install = lambda: patched.setattr(preflight, "library_versions", versions.library_versions)  # noqa: E731
    return Checked(lambda: preflight.check_versions(wanted), "numpy 1.0, .* install the same version there", install)


def _an_output_folder_that_is_not_mounted(small: Small, patched: pytest.MonkeyPatch) -> Checked:
    lock_file = small.out / ".pipeline" / "lock"
    advice = "--out must lie on a file system that all workers share, under the same path"
    return Checked(_of_context(small), advice, lambda: write(lock_file, b'{"token": "t"}'))


def _a_read_only_output_folder(small: Small, patched: pytest.MonkeyPatch) -> Checked:
    write(small.out / ".pipeline" / "lock", b'{"token": "t"}')
    patched.setattr(os, "access", lambda *_: False)
    return Checked(_of_context(small), "make --out writable for the workers", patched.undo)


def _a_source_that_is_not_mounted(small: Small, patched: pytest.MonkeyPatch) -> Checked:
    write(small.out / ".pipeline" / "lock", b'{"token": "t"}')
    (small.src / "000.dcm").rename(small.folder / "000.dcm")
    mount = lambda: (small.folder / "000.dcm").rename(small.src / "000.dcm")  # noqa: E731
    return Checked(_of_context(small), "--src must be readable under the same path by all workers", mount)


def _unpickled_key(small: Small) -> tuple[Callable[[], object], Path]:
    file = small.folder / "patient.key"
    write(file, b"0f" * 32)
    file.chmod(0o600)
    again, arguments = patients.read_key(file).__reduce__()
    return lambda: again(*arguments), file


def _a_key_that_is_not_shared(small: Small, patched: pytest.MonkeyPatch) -> Checked:
    arrives, file = _unpickled_key(small)
    file.rename(small.folder / "kept")
    share = lambda: (small.folder / "kept").rename(file)  # noqa: E731
    return Checked(arrives, "the key is not sent to workers: give --patient-key FILE that all of them can read", share)


def _another_key_on_the_worker(small: Small, patched: pytest.MonkeyPatch) -> Checked:
    arrives, file = _unpickled_key(small)
    file.write_text("ab" * 32, "utf-8")
    return Checked(arrives, "put the same file there", lambda: file.write_text("0f" * 32, "utf-8"))


def _a_package_missing_on_a_worker(small: Small, patched: pytest.MonkeyPatch) -> Checked:
    outcomes: list[object] = [ModuleNotFoundError("No module named 'pipeline'"), context.ShardResult(0)]

    class Future:
        def done(self) -> bool:
            return True

        def result(self, timeout: float) -> object:
            if isinstance(outcomes[0], Exception):
                raise outcomes[0]
            return outcomes[0]

    advice = "install the same packages there as here"
    return Checked(lambda: engine_run._outcome(Future()), advice, lambda: outcomes.pop(0))


WORKERS = (
    _another_numpy_version,
    _an_output_folder_that_is_not_mounted,
    _a_read_only_output_folder,
    _a_source_that_is_not_mounted,
    _a_key_that_is_not_shared,
    _another_key_on_the_worker,
    _a_package_missing_on_a_worker,
)


@pytest.mark.parametrize("make", WORKERS, ids=lambda make: make.__name__.strip("_"))
def test_a_worker_passes_its_checks_after_following_the_advice(
    make: Callable[[Small, pytest.MonkeyPatch], Checked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "_checked", set())
    small = Small(tmp_path)
    write_slices(small.src, range(1))
    small.out.mkdir()
    checked = make(small, monkeypatch)
    with pytest.raises(CacheError, match=checked.advice):
        checked.check()
    checked.correct()
    checked.check()


def test_a_record_that_vanishes_during_a_build_is_restored_by_the_next(tmp_path: Path) -> None:
    small = Small(tmp_path)
    write_slices(small.src, range(3))
    small.build()
    small.sizes = (8, 12)
    gone = lambda: patch("pipeline.engine.rerender.read_record", lambda *_: None)  # noqa: E731
    follow_build(Case(build(small), "the record of shard 0 is missing; run the build again", again=True, state=gone))


# --- packages --------------------------------------------------------------------------------------------------------


def test_extras_in_messages_contain_the_missing_packages() -> None:
    assert codecs.EXTRA == "pip install 'ich-cache[codecs]'"
    assert_installs("codecs", "imagecodecs")
    for module in ("cluster", "run"):
        source = Path(engine_cluster.__file__).with_name(f"{module}.py").read_text("utf-8")
        assert "Dask needs bokeh for it; run: pip install 'ich-cache[cluster]'" in source
    assert_installs("cluster", "bokeh")
    assert "pip install --upgrade numba" in Path(compiled.__file__).read_text("utf-8")
    assert_installs("pipeline", "numba")


def test_render_requires_the_advised_number_of_windows() -> None:
    dataset = pydicom.dcmread(io.BytesIO(slice_bytes(1)))
    window = Window("brain", 40, 80)
    with pytest.raises(CatalogError, match=r"0 windows .* give 1 to"):
        render(dataset, (), 8)
    assert np.ptp(render(dataset, (window,), 8)) > 0
