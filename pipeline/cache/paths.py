"""The layout of a cache: the path of every file in its folder."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.cache.attributes import COMMIT_ID, DIGEST, matching
from pipeline.cache.files import PARTIAL, is_partial_name
from pipeline.planning.stages import ArrayPath, ArraySpec

PRIVATE = ".pipeline"  # the folder of a cache that only this program uses
ASIDE = "aside"  # its subfolder for files that a repair cannot place
ARRAYS = ("images", "sums")
# The folders that only this program writes to; anything else in a cache folder belongs to someone else.
OWN_FOLDERS = (*ARRAYS, "tables", "commits", PRIVATE)
ROOT_DOCUMENT = "zarr.json"
_RECORD = re.compile(r"(0|[1-9][0-9]{0,7})\.json")


@dataclass(frozen=True, slots=True)
class Cache:
    """A cache, identified by its folder, which also stands for it in messages.

    The paths returned here need not exist: only `recorded_shards`, `commit_ids` and `partials` read the disk.

    Attributes:
        root: the folder, which Zarr readers open as the root group.
    """

    root: Path

    def __str__(self) -> str:
        return str(self.root)

    # --- public files -----------------------------------------------------------------------------------------------

    @property
    def root_document(self) -> Path:
        """The zarr.json of the root group; replacing it makes a commit the current one."""
        return self.root / ROOT_DOCUMENT

    def document(self, path: ArrayPath) -> Path:
        """Return the path of an array's zarr.json."""
        return self.root / ArrayPath(path) / "zarr.json"

    def shards_folder(self, array: str) -> Path:
        """Return the folder of the shards of an array of images or sums."""
        return self.root / array / "c"

    def images_file(self, spec: ArraySpec, shard: int) -> Path:
        """Return the path of a shard file of an image array."""
        return self.shards_folder(spec.images_path) / str(shard) / "0" / "0" / "0"

    def sums_file(self, spec: ArraySpec, shard: int) -> Path:
        """Return the path of a chunk file of a sums array."""
        return self.shards_folder(spec.sums_path) / str(shard) / "0" / "0"

    @property
    def commits_folder(self) -> Path:
        """The folder of the commits."""
        return self.root / "commits"

    def commit_file(self, commit: str) -> Path:
        """Return the path of a commit's public file."""
        return self.commits_folder / f"{matching(COMMIT_ID, commit, 'commit id')}.json"

    @property
    def tables_folder(self) -> Path:
        """The folder of the commits' tables."""
        return self.root / "tables"

    def table_file(self, digest: str) -> Path:
        """Return the path of a commit's table, which is named by its content digest."""
        return self.tables_folder / f"{matching(DIGEST, digest, 'digest')}.csv"

    @property
    def metadata_copy(self) -> Path:
        """The plain copy of the current commit's table."""
        return self.root / "metadata.csv"

    @property
    def rejects_copy(self) -> Path:
        """The plain copy of the current commit's list of rejects."""
        return self.root / "rejects.csv"

    # --- private files ----------------------------------------------------------------------------------------------

    @property
    def private(self) -> Path:
        """The folder that only builds, repairs and uploads use."""
        return self.root / PRIVATE

    @property
    def aside(self) -> Path:
        """The folder for files that a repair cannot place."""
        return self.private / ASIDE

    @property
    def lock_file(self) -> Path:
        """The file that a builder locks."""
        return self.private / "lock"

    @property
    def publisher_file(self) -> Path:
        """The file that a publisher locks."""
        return self.private / "publishing"

    @property
    def head_file(self) -> Path:
        """The second, checksummed record of which commit is current; the first is the root."""
        return self.private / "head"

    @property
    def copied_file(self) -> Path:
        """The file that names the commit whose tables were copied last."""
        return self.private / "copied"

    @property
    def pending_file(self) -> Path:
        """The file of the pending plan."""
        return self.private / "pending.json"

    @property
    def records_folder(self) -> Path:
        """The folder of the done-records."""
        return self.private / "shards"

    def record_file(self, shard: int) -> Path:
        """Return the path of a shard's done-record."""
        return self.records_folder / f"{shard}.json"

    def record_copy_file(self, shard: int) -> Path:
        """Return the path of the second copy of a done-record, from which `verify --repair` restores the first."""
        return self.private / "records" / f"{shard}.z"

    def private_file(self, commit: str) -> Path:
        """Return the path of a commit's private part."""
        return self.private / "private" / f"{matching(COMMIT_ID, commit, 'commit id')}.json"

    def rejects_file(self, digest: str) -> Path:
        """Return the path of a commit's list of rejects, which is named by its content digest."""
        return self.private / "rejects" / f"{matching(DIGEST, digest, 'digest')}.csv"

    def ledger_file(self, commit: str) -> Path:
        """Return the path of a commit's ledger."""
        return self.private / "ledgers" / matching(COMMIT_ID, commit, "commit id")

    @property
    def backups_folder(self) -> Path:
        """The folder of the commits' backups."""
        return self.private / "spares"

    def backup_file(self, commit: str) -> Path:
        """Return the path of a commit's backup."""
        return self.backups_folder / f"{matching(COMMIT_ID, commit, 'commit id')}.zip"

    def folders_of_commits(self) -> tuple[Path, ...]:
        """Return the folders that hold the files of commits, shared or not."""
        private = tuple(self.private / name for name in ("rejects", "ledgers", "private"))
        return (self.commits_folder, self.tables_folder, self.backups_folder, *private)

    def own_files(self, commit: str) -> tuple[Path, ...]:
        """Return the files that belong to this commit alone, its public one first; others may share its tables."""
        public, private = self.commit_file(commit), self.private_file(commit)
        return public, private, self.ledger_file(commit), self.backup_file(commit)

    def name_of(self, path: Path) -> str:
        """Return the path of a file relative to the root, with forward slashes."""
        return path.relative_to(self.root).as_posix()

    # --- ownership of files -----------------------------------------------------------------------------------------

    def is_own(self, path: Path) -> bool:
        """Return whether a file belongs to this program."""
        return path.relative_to(self.root).parts[0] in OWN_FOLDERS or self.is_partial(path)

    def is_partial(self, path: Path) -> bool:
        """Return whether a file is a temporary file of this program, next to the root document or in its folders."""
        parts = path.relative_to(self.root).parts
        if len(parts) == 1:  # other programs may write there too
            return is_partial_name(parts[0])
        return parts[0] in OWN_FOLDERS and parts[-1].startswith(".") and parts[-1].endswith(PARTIAL)

    def is_chunk(self, path: Path) -> bool:
        """Return whether a path is that of a shard; removing a shard that no record names loses nothing recorded."""
        folder, *inside = path.relative_to(self.root).parts
        return folder in ARRAYS and "c" in inside[:2]

    # --- contents on disk -------------------------------------------------------------------------------------------

    def recorded_shards(self) -> list[int]:
        """Return the shards that have a done-record, sorted."""
        try:
            with os.scandir(self.records_folder) as entries:
                return sorted(int(entry.name[:-5]) for entry in entries if _RECORD.fullmatch(entry.name))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def commit_ids(self) -> set[str]:
        """Return the ids of all commits that have a file, including those that never became the current one."""
        return {path.stem for path in self.commits_folder.glob("*.json") if COMMIT_ID.fullmatch(path.stem)}

    def partials(self) -> Iterator[Path]:
        """Yield the temporary files of writers that were killed or are still at work, in this program's places only."""
        beside = [self.root / name for name in os.listdir(self.root)] if self.root.is_dir() else []
        yield from (path for path in beside if self.is_partial(path) and path.is_file())
        for own in OWN_FOLDERS:
            for folder, folders, names in os.walk(self.root / own):
                if ASIDE in folders and Path(folder) == self.private:
                    folders.remove(ASIDE)
                yield from (path for name in names if self.is_partial(path := Path(folder) / name))
