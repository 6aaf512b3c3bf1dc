"""Test how batches reach a GPU: on a real one, and with fake devices and streams that record the order."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from testkit.fake_cache import FakeCache, write_cache
from training.data import copies
from training.data.batches import Guard
from training.data.cache import open_cache
from training.data.copies import on_device
from training.data.stream import Draw, Stream

SIZE = 32
GPU = torch.device("cuda", 0)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeCache:
    return write_cache(tmp_path_factory.mktemp("stream") / "cache.zarr", patients=12)


def stream_of(path: Path, *, pin: bool = False) -> Stream:
    cache = open_cache(path)
    drawn = Draw(1, lambda epoch, number, keys: np.full((len(keys), 1), 100 * epoch + number, np.float32))
    return Stream(cache, SIZE, np.arange(cache.num_slices), 4, threads=2, ahead=1, pin=pin, draw=drawn)


def wrong(fake: FakeCache, images: list[torch.Tensor], epochs: int) -> int:
    """Count the batches that differ from the epochs' order; a refilled batch would still be consistent in itself."""
    stream = stream_of(fake.path)
    order = [batch.lines.numpy().copy() for epoch in range(epochs) for batch in stream.epoch(0, epoch)]
    return sum(
        not np.array_equal(got.cpu(), fake.images[SIZE][lines]) for got, lines in zip(images, order, strict=True)
    )


def copied_late(stream: Stream) -> list[torch.Tensor]:
    """Take two epochs through a GPU whose copies take 20 ms each, while the host continues."""
    kept = []
    for epoch in range(2):
        for batch in on_device(stream.epoch(0, epoch), GPU):
            with torch.cuda.stream(copies._copying(GPU)):
                torch.cuda._sleep(40_000_000)  # type: ignore[no-untyped-call]
            kept.append(batch.images.clone())
    return kept


@pytest.mark.gpu
@needs_gpu
def test_the_gpu_gets_the_right_batches_even_if_it_copies_late(fake: FakeCache) -> None:
    assert wrong(fake, copied_late(stream_of(fake.path, pin=True)), 2) == 0


@pytest.mark.gpu
@needs_gpu
def test_the_gpu_gets_wrong_batches_without_the_guard(fake: FakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guard, "wait", lambda _: None)
    assert wrong(fake, copied_late(stream_of(fake.path, pin=True)), 2) > 0


class FakeStream:
    """Work on a device that is only done when it is waited for."""

    made: ClassVar[list["FakeStream"]] = []
    current: ClassVar[list["FakeStream"]] = []

    def __init__(self, *_: object) -> None:
        self.work: list[Callable[[], object]] = []
        self.done = 0
        self._lock = threading.RLock()
        FakeStream.made.append(self)

    def record_event(self) -> "FakeEvent":
        return FakeEvent(self, len(self.work))

    def wait_event(self, event: "FakeEvent") -> None:
        self.work.append(event.synchronize)

    def run(self, until: int) -> None:
        with self._lock:
            while self.done < until:
                self.work[self.done]()
                self.done += 1


class FakeEvent:
    def __init__(self, stream: FakeStream, until: int) -> None:
        self.stream, self.until = stream, until

    def synchronize(self) -> None:
        self.stream.run(self.until)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A fake GPU that copies as late as possible, from the host's memory as it is then."""
    FakeStream.made.clear()
    FakeStream.current[:] = [FakeStream()]
    true_to = torch.Tensor.to

    def to(tensor: torch.Tensor, *where: Any, **how: Any) -> torch.Tensor:
        if where[:1] != (GPU,):
            return true_to(tensor, *where, **how)
        assert how == {"non_blocking": True}
        copy, address, size = torch.zeros_like(tensor), tensor.data_ptr(), tensor.nbytes  # holds no reference
        FakeStream.current[-1].work.append(lambda: ctypes.memmove(copy.data_ptr(), address, size))
        return copy

    @contextmanager
    def on(stream: FakeStream) -> Iterator[None]:
        FakeStream.current.append(stream)
        yield
        FakeStream.current.pop()

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    for name, made_up in (("Stream", FakeStream), ("stream", on), ("current_stream", lambda _: FakeStream.current[-1])):
        monkeypatch.setattr(torch.cuda, name, made_up)
    copies._copying.cache_clear()
    yield GPU
    copies._copying.cache_clear()


def through(stream: Stream, device: torch.device, epochs: int) -> list[torch.Tensor]:
    kept = [batch.images for epoch in range(epochs) for batch in on_device(stream.epoch(0, epoch), device)]
    computing = FakeStream.current[0]
    computing.run(len(computing.work))
    return kept


def test_memory_is_refilled_only_after_its_copy(fake: FakeCache, device: torch.device) -> None:
    assert wrong(fake, through(stream_of(fake.path), device, 3), 3) == 0


def test_without_the_guard_a_late_copy_reads_wrong_data(
    fake: FakeCache, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Guard, "wait", lambda _: None)
    assert wrong(fake, through(stream_of(fake.path), device, 3), 3) > 0


def test_a_batch_is_used_only_after_its_copy(fake: FakeCache, device: torch.device) -> None:
    """The compute stream waits for the copy of each batch, which is a single copy of all its parts."""
    computing, copying, expected = FakeStream.current[0], None, stream_of(fake.path).epoch(0, 0)
    arriving = on_device(stream_of(fake.path).epoch(0, 0), device)
    for number, (batch, host) in enumerate(zip(arriving, expected, strict=True)):
        computing.run(len(computing.work))
        copying = FakeStream.made[-1]
        for name in ("images", "z_norm", "labels", "keys", "lines", "drawn"):
            assert torch.equal(getattr(batch, name), getattr(host, name))
        assert number + 1 <= copying.done <= len(copying.work) <= number + 2


def test_epochs_and_evaluations_share_one_stream_for_copies(fake: FakeCache, device: torch.device) -> None:
    before = len(FakeStream.made)
    through(stream_of(fake.path), device, 3)
    through(stream_of(fake.path), device, 2)
    assert len(FakeStream.made) - before == 1


def test_filling_threads_set_their_device(fake: FakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise those of the second process would create a context on the first GPU."""
    seen: list[tuple[str, int]] = []
    true_empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **how: true_empty(*shape, **how))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: seen.append((threading.current_thread().name, number)))
    list(stream_of(fake.path, pin=True).epoch(0, 0))
    assert 1 <= len(seen) <= 2
    assert all(name.startswith("stream") and number == 1 for name, number in seen)
