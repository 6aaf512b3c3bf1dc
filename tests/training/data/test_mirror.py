"""Test that a cache elsewhere is read by way of local copies, whatever goes wrong on the way."""

import errno
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import save_file

import training.data.mirror
from testkit.fake_cache import CACHE, FakeCache, write_cache
from testkit.tiny_run import HERE, SETTINGS, settings
from training.cli.main import main
from training.data.cache import Cache, open_cache
from training.data.mirror import Mirror
from training.data.stream import Stream
from training.errors import CacheError
from training.model.network import build_model
from training.run.job import begin

SIZE = 32
FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


class FaultyStore(LocalFileSystem):
    """A store behind faulty://, a folder of this machine really, that counts, delays and fails as a test wants."""

    protocol = "faulty"
    requests: ClassVar[Counter[tuple[str, bool]]] = Counter()  # (path, whether the whole file was asked for)
    at_once = most_at_once = 0
    delay_s = 0.0
    fault: Callable[[str], None] = staticmethod(lambda path: None)
    counting = threading.Lock()

    @classmethod
    def reset(cls) -> None:
        cls.requests, cls.at_once, cls.most_at_once, cls.delay_s = Counter(), 0, 0, 0.0
        cls.fault = staticmethod(lambda path: None)

    @classmethod
    def whole(cls) -> Counter[str]:
        """Return how often each shard was asked for whole."""
        return Counter({path: n for (path, whole), n in cls.requests.items() if whole and "/images/" in path})

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        store = type(self)
        with store.counting:
            store.requests[path, start is None] += 1
            store.at_once += 1
            store.most_at_once = max(store.most_at_once, store.at_once)
        try:
            time.sleep(store.delay_s)
            store.fault(path)
            return super().cat_file(self._strip_protocol(path), start, end, **kwargs)
        finally:
            with store.counting:
                store.at_once -= 1


fsspec.register_implementation("faulty", FaultyStore, clobber=True)


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeCache:
    return write_cache(tmp_path_factory.mktemp("origin") / "cache.zarr", patients=40)  # 34 shards


@pytest.fixture
def address(fake: FakeCache, tmp_path: Path) -> str:
    return f"faulty://{shutil.copytree(fake.path, tmp_path / 'cache.zarr')}"


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FaultyStore]]:
    monkeypatch.setattr(training.data.mirror, "RETRY_AFTER_S", (0.001, 0.001))
    FaultyStore.reset()
    yield FaultyStore
    FaultyStore.reset()


def stream_of(cache: Cache, threads: int = 1, lines: np.ndarray | None = None) -> Stream:
    return Stream(cache, SIZE, np.arange(cache.num_slices) if lines is None else lines, 8, threads)


def check_epoch(fake: FakeCache, stream: Stream, epoch: int = 0) -> None:
    """Read an epoch and compare every pixel."""
    seen = []
    for batch in stream.epoch(0, epoch):
        assert np.array_equal(batch.images.numpy(), fake.images[SIZE][batch.lines.numpy()])
        seen += batch.lines.tolist()
    assert sorted(seen) == list(range(len(fake.table)))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("images/*/c/*/0/0/0"))


def message(call: Callable[[], object]) -> str:
    with pytest.raises(CacheError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_what_is_read_is_copied_once(
    fake: FakeCache, address: str, tmp_path: Path, store: type[FaultyStore], threads: int
) -> None:
    copies = tmp_path / "copies"
    cache = open_cache(address, local_copy=copies)
    stream = stream_of(cache, threads)
    check_epoch(fake, stream)
    asked = store.whole()
    assert len(asked) == len(shards(copies)) > 30
    assert set(asked.values()) == {1}
    for copy in shards(copies):
        origin = fake.path / copy.relative_to(next(copies.iterdir()))
        assert copy.read_bytes() == origin.read_bytes()
    store.reset()
    check_epoch(fake, stream, 1)
    check_epoch(fake, stream_of(open_cache(address, local_copy=copies)))
    assert store.whole() == Counter()


def test_opened_from_elsewhere_it_is_the_same_cache(fake: FakeCache, address: str, tmp_path: Path) -> None:
    near, far = open_cache(fake.path), open_cache(address, local_copy=tmp_path / "copies")
    assert far.path == address
    assert (far.commit, far.windows, far.classes, far.sizes) == (near.commit, near.windows, near.classes, near.sizes)
    assert far.table.equals(near.table)
    rows = near.table["row"].to_numpy()
    assert np.array_equal(far.sums(SIZE, rows), near.sums(SIZE, rows))
    assert open_cache(address, near.commit, tmp_path / "copies").table.equals(near.table)
    assert f"did you mean {near.commit}?" in message(
        lambda: open_cache(address, near.commit[:-1] + "x", tmp_path / "copies")
    )


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_a_folder_and_any_store_of_fsspec_will_do(fake: FakeCache, tmp_path: Path, kind: str) -> None:
    address = str(fake.path)
    if kind == "memory":
        address = "memory://bucket/cache.zarr/"
        fsspec.filesystem("memory").put(str(fake.path), "bucket/cache.zarr", recursive=True)
    check_epoch(fake, stream_of(open_cache(address, local_copy=tmp_path / "copies")))
    assert len(shards(tmp_path / "copies")) == len(shards(fake.path))


def test_only_what_is_read_is_copied(fake: FakeCache, address: str, tmp_path: Path) -> None:
    cache = open_cache(address, local_copy=tmp_path / "copies")
    lines = np.flatnonzero(cache.table["row"] // 8 < 3)
    list(stream_of(cache, lines=lines).epoch(0, 0))
    assert len(shards(tmp_path / "copies")) == 3


def test_shards_come_several_at_a_time(fake: FakeCache, address: str, tmp_path: Path, store: type[FaultyStore]) -> None:
    stream = stream_of(open_cache(address, local_copy=tmp_path / "copies"))
    store.most_at_once, store.delay_s = 0, 0.05
    check_epoch(fake, stream)
    assert 8 <= store.most_at_once <= 17  # the background's 16, and the thread that fills a batch


def test_a_copy_of_another_cache_at_the_address_is_made_anew(fake: FakeCache, address: str, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    old = open_cache(address, local_copy=copies)
    check_epoch(fake, stream_of(old))
    old.sums(SIZE, np.arange(8))
    shutil.rmtree(tmp_path / "cache.zarr")
    new = write_cache(tmp_path / "cache.zarr", patients=40, seed=9)
    cache = open_cache(address, local_copy=copies)
    assert cache.table["image_id"].tolist() == new.table["image_id"].tolist()
    check_epoch(new, stream_of(cache))
    rows = new.table["row"].to_numpy()
    assert np.array_equal(cache.sums(SIZE, rows), open_cache(new.path).sums(SIZE, rows))


def test_a_cache_that_is_replaced_under_way_is_not_mixed_up(fake: FakeCache, address: str, tmp_path: Path) -> None:
    stream = stream_of(open_cache(address, local_copy=tmp_path / "copies"))
    shutil.rmtree(tmp_path / "cache.zarr")
    write_cache(tmp_path / "cache.zarr", patients=40, seed=9)
    assert "has changed since this command began" in message(lambda: check_epoch(fake, stream))


def test_caches_of_the_same_name_share_the_folder(fake: FakeCache, tmp_path: Path) -> None:
    other = write_cache(tmp_path / "cache.zarr", patients=6, seed=3)
    for _ in range(2):
        for each in (fake, other):
            check_epoch(each, stream_of(open_cache(each.path, local_copy=tmp_path / "copies")))
    assert len(list((tmp_path / "copies").iterdir())) == 2


def fail(times: int, error: Exception, where: str = "/images/") -> Callable[[str], None]:
    left = Counter[str]()

    def fault(path: str) -> None:
        left[path] += where in path
        if 0 < left[path] <= times:
            raise error

    return staticmethod(fault)  # type: ignore[return-value]


def test_a_store_that_stumbles_is_asked_again(
    fake: FakeCache, address: str, tmp_path: Path, store: type[FaultyStore]
) -> None:
    store.fault = fail(2, ConnectionResetError("reset by peer"))
    check_epoch(fake, stream_of(open_cache(address, local_copy=tmp_path / "copies")))


@pytest.mark.parametrize("error", [TimeoutError("no answer"), RuntimeError("two\nlines"), PermissionError("forbidden")])
@pytest.mark.parametrize("threads", [0, 2])
def test_a_lost_network_is_one_line_and_the_next_run_goes_on(
    fake: FakeCache, address: str, tmp_path: Path, store: type[FaultyStore], error: Exception, threads: int
) -> None:
    copies = tmp_path / "copies"
    cache = open_cache(address, local_copy=copies)
    list(stream_of(cache, threads, np.flatnonzero(cache.table["row"] // 8 < 10)).epoch(0, 0))
    stream = stream_of(cache, threads)
    store.fault = fail(1000, error)
    text = message(lambda: check_epoch(fake, stream))
    assert [word for word in (address, "network", "start the same command again") if word not in text] == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("mirror", "stream"))]
    store.reset()
    check_epoch(fake, stream_of(open_cache(address, local_copy=copies), threads))
    assert len(store.whole()) == len(shards(fake.path)) - 10


def test_a_file_that_the_origin_has_lost_is_damage_of_the_origin(address: str, tmp_path: Path) -> None:
    cache = open_cache(address, local_copy=tmp_path / "copies")
    lost = shards(tmp_path / "cache.zarr")[0]
    lost.unlink()
    text = message(lambda: stream_of(cache))
    assert f"faulty://{lost}: is missing" in text
    assert "verify --repair" in text


def test_a_full_disk_is_one_line_and_leaves_no_litter(
    fake: FakeCache, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = tmp_path / "copies"
    stream = stream_of(open_cache(address, local_copy=copies))
    sync, left = os.fsync, iter(range(10))

    def full(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    text = message(lambda: check_epoch(fake, stream))
    assert [word for word in (str(copies), "No space left", "--local-copy") if word not in text] == []
    assert list(copies.rglob("*.partial")) == []
    assert len(shards(copies)) == 10
    monkeypatch.undo()
    check_epoch(fake, stream)


def test_a_damaged_copy_is_found_and_its_removal_mends_it(fake: FakeCache, address: str, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    stream = stream_of(open_cache(address, local_copy=copies))
    check_epoch(fake, stream)
    row = int(fake.table["row"][7])
    copy = next(copy for copy in shards(copies) if copy.parts[-4] == str(row // 8))
    content = bytearray(copy.read_bytes())
    start, length = np.frombuffer(content[-(8 * 16 + 4) : -4], "<u8").reshape(8, 2)[row % 8]
    content[int(start + length // 2)] ^= 1
    copy.write_bytes(content)
    again = stream_of(open_cache(address, local_copy=copies))
    text = message(lambda: check_epoch(fake, again))
    assert [w for w in (str(copy), fake.table["sop_instance_uid"][7], "remove this file") if w not in text] == []
    copy.unlink()
    check_epoch(fake, stream_of(open_cache(address, local_copy=copies)))


@pytest.mark.parametrize("length", [0, 5, 1000])
def test_a_copy_that_was_cut_off_is_made_anew(fake: FakeCache, address: str, tmp_path: Path, length: int) -> None:
    copies = tmp_path / "copies"
    check_epoch(fake, stream_of(open_cache(address, local_copy=copies)))
    for copy in shards(copies)[::5]:
        os.truncate(copy, length)
    check_epoch(fake, stream_of(open_cache(address, local_copy=copies)))


def test_a_damaged_table_says_what_to_remove(address: str, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    open_cache(address, local_copy=copies)
    (table,) = copies.rglob("tables/*.csv")
    table.write_bytes(table.read_bytes()[:-9])
    text = message(lambda: open_cache(address, local_copy=copies))
    assert f"{table}: " in text
    assert "remove this file" in text
    table.unlink()
    open_cache(address, local_copy=copies)


def read_slowly(address: str, copies: Path, rank: int, world: int, answers: Any) -> None:
    FaultyStore.delay_s = 0.01
    cache = open_cache(address, local_copy=copies)
    pixels = {}
    for batch in stream_of(cache).epoch(0, 0, rank=rank, world=world):
        for line, image in zip(batch.lines.tolist(), batch.images.numpy(), strict=True):
            pixels[line] = image.tobytes()
    answers.put((pixels, FaultyStore.whole()))


@FORKS
def test_processes_share_the_copies(fake: FakeCache, address: str, tmp_path: Path) -> None:
    context: Any = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [
        context.Process(target=read_slowly, args=(address, tmp_path / "copies", rank, 3, answers)) for rank in range(3)
    ]
    for process in processes:
        process.start()
    read = [answers.get(timeout=300) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    pixels = {line: image for part, _ in read for line, image in part.items()}
    assert pixels == {line: image.tobytes() for line, image in enumerate(fake.images[SIZE])}
    asked: Counter[str] = sum((whole for _, whole in read), Counter())
    assert len(asked) == len(shards(fake.path))
    assert set(asked.values()) == {1}
    assert list((tmp_path / "copies").rglob("*.partial")) == []


def bring_and_hang(address: str, copies: Path, name: str) -> None:
    os.fsync = lambda descriptor: time.sleep(600)  # type: ignore[assignment]
    Mirror(address, copies, CACHE).fetch(name, 4)


@FORKS
def test_a_killed_process_is_in_nobodys_way(fake: FakeCache, address: str, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    name = f"images/{SIZE}-0badcafe/c/0/0/0/0"
    process: Any = multiprocessing.get_context("fork").Process(target=bring_and_hang, args=(address, copies, name))
    process.start()
    deadline = time.monotonic() + 60
    while not (partial := list(copies.rglob("*.partial"))) or not partial[0].stat().st_size:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join(timeout=60)
    assert shards(copies) == []
    assert len(list(copies.rglob("*.partial"))) == 1
    check_epoch(fake, stream_of(open_cache(address, local_copy=copies)))
    assert list(copies.rglob("*.partial")) == []


def test_many_writers_of_one_file_fetch_it_once(address: str, tmp_path: Path, store: type[FaultyStore]) -> None:
    """Threads, each with a mirror of its own, as several streams of a process have."""
    name = f"images/{SIZE}-0badcafe/c/0/0/0/0"
    store.delay_s = 0.02
    together = threading.Barrier(20)
    found = []

    def fetch() -> None:
        mirror = Mirror(address, tmp_path / "copies")
        mirror.tail(name, 132)
        together.wait()
        found.append(mirror.fetch(name, 132).read_bytes())

    threads = [threading.Thread(target=fetch) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(store.whole().values()) == {1}
    assert set(found) == {(tmp_path / "cache.zarr" / name).read_bytes()}
    assert len(found) == 20


def test_an_address_needs_a_place_for_copies() -> None:
    assert "--local-copy" in message(lambda: open_cache("s3://bucket/cache.zarr"))


@pytest.mark.parametrize(
    ("address", "word"),
    [("memory://nowhere/cache.zarr", "no cache here"), ("no-such://bucket/c.zarr", "check the address")],
)
def test_a_wrong_address_is_one_line(address: str, word: str, tmp_path: Path) -> None:
    text = message(lambda: open_cache(address, local_copy=tmp_path))
    assert word in text
    assert address in text


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    assert "ich-cache[s3]" in message(lambda: open_cache("s3://bucket/cache.zarr", local_copy=tmp_path))


def train(*arguments: object) -> tuple[int, list[str]]:
    """Call the command `train`; return its exit code and what it says on stderr."""
    torch.set_num_threads(1)
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    return result.exit_code, result.stderr.splitlines()


def test_every_command_takes_an_address(tmp_path: Path) -> None:
    fake = write_cache(tmp_path / "cache.zarr", patients=10, slices=4)
    address, run_path, copies = f"faulty://{fake.path}", tmp_path / "run", tmp_path / "copies"
    run, cache = begin(run_path, address, settings(), HERE, copies)
    assert run.data.cache == address
    save_file(build_model(run.config, len(cache.classes)).state_dict(), run.weights)

    small = [f"--set={name}={value}" for name, value in SETTINGS.items()]
    on_cpu = ("--device", "cpu", "--input-threads", 0)
    rehearse = ("run", "--cache", address, "--dry-run", *small, *on_cpu)
    evaluate = ("evaluate", "--run", run_path, *on_cpu)
    predict = ("predict", "--run", run_path, "--cache", address, "--out", tmp_path / "submission.csv", *on_cpu)
    for command in (rehearse, evaluate, predict, ("run", "--resume", run_path, *on_cpu), ("report", "--run", run_path)):
        code, (line,) = train(*command)
        assert (code, "--local-copy" in line) == (1, True)
    for command in (rehearse, evaluate, predict):
        assert train(*command, "--local-copy", copies)[0] == 0
    assert len(shards(copies)) == len(shards(fake.path))
