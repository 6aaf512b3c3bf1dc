"""Random histories of a source and its settings, for a property test and its benchmark."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from testkit.small import LONG_AGO_NS, MADE_UP, Deck, Small, counted, frames_bytes, write

MAX_FILES = 9


@dataclass
class History:
    """A small source with random changes.

    Attributes:
        steps: descriptions of the changes, for assertion messages.
    """

    small: Small
    rng: np.random.Generator
    deck: Deck = MADE_UP
    steps: list[str] = field(default_factory=list)
    clock_ns: int = LONG_AGO_NS

    @property
    def anchor(self) -> int:
        """The number of a slice that is never removed, as an empty source is an error."""
        return 40 if self.deck is MADE_UP else 12

    def begin(self) -> None:
        """Write the initial source and build it."""
        write(self.small.src / "anchor.dcm", self.deck.slice(self.anchor))
        for _ in range(3):
            self.add()
        self.build()

    def change(self) -> None:
        """Make one to three changes, then build, and compare the plan with the work of the build."""
        changes: list[Callable[[], None]] = [
            self.add, self.add, self.add_frames, self.copy, self.rewrite, self.touch, self.rename, self.remove,
            self.relabel, self.rewindow, self.resize, self.reread,
        ]  # fmt: skip
        for _ in range(self.rng.integers(1, 4)):
            changes[self.rng.integers(len(changes))]()
        self.build()

    def build(self) -> None:
        self.steps.append("build")
        made = json.loads(self.small.plan("--json", *self.small.only(), code=None).stdout)
        with counted() as work:
            self.small.build("--prune", "--max-rejects", "100%", *self.small.only())
        files = made["compared"] + [file for task in made["tasks"] for file in task["files"]]
        shards = {f"{array}/c/{task['shard']}/0/0/0" for task in made["tasks"] for array in task["arrays"]}
        written = {str(Path(shard).relative_to(self.small.out.resolve())) for shard in work.shards}
        handed_back = [file for file in set(work.read) if file.startswith("frames")]
        if not handed_back:  # the number of frames is not known before a file is opened
            assert sorted(work.read) == sorted(files), self.steps
            assert written <= shards, self.steps
        assert set(work.read) == set(files), self.steps

    # --- changes ---

    def _files(self) -> list[Path]:
        return sorted(path for path in self.small.src.rglob("*") if path.is_file() and path.name != "anchor.dcm")

    def _pick(self) -> Path | None:
        files = self._files()
        return files[self.rng.integers(len(files))] if files else None

    def _write(self, path: Path, content: bytes, what: str) -> None:
        self.clock_ns += 10**9
        write(path, content, self.clock_ns)
        self.steps.append(f"{what} {path.name}")

    def _path(self, prefix: str = "f") -> Path:
        return self.small.src / f"{prefix}{self.rng.integers(50):02d}.dcm"

    def add(self) -> None:
        if len(self._files()) < MAX_FILES:
            number, content = (int(value) for value in self.rng.integers([12, 2]))
            self._write(self._path(), self.deck.slice(number, content, series=number % 2), f"add {number}/{content} as")

    def add_frames(self) -> None:
        if len(self._files()) < MAX_FILES:
            number, frames = (int(value) for value in self.rng.integers([3, 7])) if self.rng.integers(2) else (1, 2)
            self._write(self._path("frames"), frames_bytes(20 + number, frames + 1), f"add {frames + 1} frames as")

    def copy(self) -> None:
        if (path := self._pick()) and len(self._files()) < MAX_FILES:
            self._write(
                self._path(path.name[:-6] if path.name.startswith("frames") else "f"), path.read_bytes(), "copy as"
            )

    def rewrite(self) -> None:
        if (path := self._pick()) and path.name.startswith("f") and not path.name.startswith("frames"):
            number, content = (int(value) for value in self.rng.integers([12, 3]))
            self._write(path, self.deck.slice(number, content, series=number % 2), f"rewrite with {number}/{content}")

    def touch(self) -> None:
        if path := self._pick():
            self._write(path, path.read_bytes(), "touch")

    def rename(self) -> None:
        if (path := self._pick()) and not (new := self._path(path.name[:-6])).exists():
            path.rename(new)
            self.steps.append(f"rename {path.name} to {new.name}")

    def remove(self) -> None:
        if (path := self._pick()) and len(self._files()) > 2:
            path.unlink()
            self.steps.append(f"remove {path.name}")

    def relabel(self) -> None:
        numbers = range(int(self.rng.integers(12)))
        first = self._files()[0] if self._files() else None
        self.small.labels = None
        if first is not None and numbers:
            uids = [self.deck.uid(number, number % 2) for number in (*range(12), self.anchor)]
            self.small.labels = {uid: int(self.rng.integers(2)) for uid in uids}
        self.steps.append("relabel")

    def rewindow(self) -> None:
        self.small.level = int(self.rng.choice([40, 50]))
        self.steps.append(f"level {self.small.level}")

    def resize(self) -> None:
        self.small.sizes = ((4,), (4, 6), (6,))[self.rng.integers(3)]
        self.steps.append(f"sizes {self.small.sizes}")

    def reread(self) -> None:
        self.small.rescale = str(self.rng.choice(["reject", "identity"]))
        self.steps.append(self.small.rescale)


def check_history(folder: Path, seed: int, changes: int, deck: Deck = MADE_UP) -> History:
    """Run one history and check that the content equals that of a clean build."""
    rng = np.random.default_rng(seed)
    history = History(Small(folder / "history", sizes=(4,), rows=4), rng, deck)
    history.small.folder.mkdir()
    history.begin()
    for _ in range(changes):
        history.change()
    assert history.small.digest() == history.small.clean_digest(folder / "clean"), history.steps
    history.small.verify()
    shutil.rmtree(folder / "clean")
    shutil.rmtree(history.small.folder)
    return history
