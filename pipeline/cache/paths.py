"""Say where everything in a cache lies: the folder of a cache, and each of its files."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.cache.attributes import COMMIT_ID, DIGEST, matching
from pipeline.cache.files import PARTIAL, is_partial_name
from pipeline.planning.stages import ArrayPath, ArraySpec

PRIVATE = ".pipeline"  # the folder of a cache that only this program looks at
ASIDE = "aside"  # its folder for what a repair cannot place
ARRAYS = ("images", "sums")
# What this program alone writes to; anything else below a cache is somebody's.
OWN_FOLDERS = (*ARRAYS, "tables", "commits", PRIVATE)
ROOT_DOCUMENT = "zarr.json"
_RECORD = re.compile(r"(0|[1-9][0-9]{0,7})\.json")


@dataclass(frozen=True, slots=True)
class Cache:
    """A cache, by the folder that it is in; in a message it is named by that.

    A path that is given here may lead to nothing: only `recorded_shards`, `commit_ids` and `partials` look.

    Attributes:
        root: the folder, of which a Zarr reader opens the root group.
    """

    root: Path

    def __str__(self) -> str:
        return str(self.root)

    # --- what any reader sees ---------------------------------------------------------------------------------------

    @property
    def root_document(self) -> Path:
        """The zarr.json of the root group: whoever replaces it makes a commit the current one."""
        return self.root / ROOT_DOCUMENT

    def document(self, path: ArrayPath) -> Path:
        """The zarr.json of an array."""
        return self.root / ArrayPath(path) / "zarr.json"

    def shards_folder(self, array: str) -> Path:
        """The folder of an array's shards, images or sums."""
        return self.root / array / "c"

    def images_file(self, spec: ArraySpec, shard: int) -> Path:
        """The shard file of an image array."""
        return self.shards_folder(spec.images_path) / str(shard) / "0" / "0" / "0"

    def sums_file(self, spec: ArraySpec, shard: int) -> Path:
        """The chunk file of an array of sums."""
        return self.shards_folder(spec.sums_path) / str(shard) / "0" / "0"

    @property
    def commits_folder(self) -> Path:
        """The folder of the commits."""
        return self.root / "commits"

    def commit_file(self, commit: str) -> Path:
        """The file of a commit, by its id."""
        return self.commits_folder / f"{matching(COMMIT_ID, commit, 'commit id')}.json"

    @property
    def tables_folder(self) -> Path:
        """The folder of the commits' tables."""
        return self.root / "tables"

    def table_file(self, digest: str) -> Path:
        """The file of a commit's table, named by its content."""
        return self.tables_folder / f"{matching(DIGEST, digest, 'digest')}.csv"

    @property
    def metadata_copy(self) -> Path:
        """The plain copy of the current commit's table."""
        return self.root / "metadata.csv"

    @property
    def rejects_copy(self) -> Path:
        """The plain copy of the current commit's list of rejects."""
        return self.root / "rejects.csv"

    # --- what only this program sees --------------------------------------------------------------------------------

    @property
    def private(self) -> Path:
        """The folder that only builds, repairs and uploads look at."""
        return self.root / PRIVATE

    @property
    def aside(self) -> Path:
        """The folder for what a repair cannot place."""
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
        """The second record of the current commit, with a checksum; the first is the root."""
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
        """The file of a shard's done-record."""
        return self.records_folder / f"{shard}.json"

    def record_copy_file(self, shard: int) -> Path:
        """The second copy of a done-record, from which `verify --repair` restores the first."""
        return self.private / "records" / f"{shard}.z"

    def private_file(self, commit: str) -> Path:
        """The file of a commit's private part."""
        return self.private / "private" / f"{matching(COMMIT_ID, commit, 'commit id')}.json"

    def rejects_file(self, digest: str) -> Path:
        """The file of a commit's list of rejects, named by its content."""
        return self.private / "rejects" / f"{matching(DIGEST, digest, 'digest')}.csv"

    def ledger_file(self, commit: str) -> Path:
        """The file of a commit's ledger."""
        return self.private / "ledgers" / matching(COMMIT_ID, commit, "commit id")

    @property
    def backups_folder(self) -> Path:
        """The folder of the commits' backups."""
        return self.private / "spares"

    def backup_file(self, commit: str) -> Path:
        """The file of a commit's backup."""
        return self.backups_folder / f"{matching(COMMIT_ID, commit, 'commit id')}.zip"

    def folders_of_commits(self) -> tuple[Path, ...]:
        """The folders in which commits have files, whether one commit alone or several together."""
        private = tuple(self.private / name for name in ("rejects", "ledgers", "private"))
        return (self.commits_folder, self.tables_folder, self.backups_folder, *private)

    def own_files(self, commit: str) -> tuple[Path, ...]:
        """The files that only this commit has, its public one first; tables and rejects may serve others too."""
        public, private = self.commit_file(commit), self.private_file(commit)
        return public, private, self.ledger_file(commit), self.backup_file(commit)

    def name_of(self, path: Path) -> str:
        """The path of a file as it is inside of a cache, wherever that lies."""
        return path.relative_to(self.root).as_posix()

    # --- whose a file is --------------------------------------------------------------------------------------------

    def is_own(self, path: Path) -> bool:
        """Whether a file lies where this program writes and nobody else."""
        return path.relative_to(self.root).parts[0] in OWN_FOLDERS or self.is_partial(path)

    def is_partial(self, path: Path) -> bool:
        """Whether a file is a temporary one of this program: beside the root document, or in a folder of its own."""
        parts = path.relative_to(self.root).parts
        if len(parts) == 1:  # where others write too
            return is_partial_name(parts[0])
        return parts[0] in OWN_FOLDERS and parts[-1].startswith(".") and parts[-1].endswith(PARTIAL)

    def is_chunk(self, path: Path) -> bool:
        """Whether a file lies in the place of a shard: nothing recorded is lost with one that no record names."""
        folder, *inside = path.relative_to(self.root).parts
        return folder in ARRAYS and "c" in inside[:2]

    # --- what is there ----------------------------------------------------------------------------------------------

    def recorded_shards(self) -> list[int]:
        """The shards that have a done-record, sorted."""
        try:
            with os.scandir(self.records_folder) as entries:
                return sorted(int(entry.name[:-5]) for entry in entries if _RECORD.fullmatch(entry.name))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def commit_ids(self) -> set[str]:
        """Every commit that has a file, whether it ever became the current one or not."""
        return {path.stem for path in self.commits_folder.glob("*.json") if COMMIT_ID.fullmatch(path.stem)}

    def partials(self) -> Iterator[Path]:
        """The temporary files of writers that were killed, or are at work: where a cache has files, and no deeper."""
        beside = [self.root / name for name in os.listdir(self.root)] if self.root.is_dir() else []
        yield from (path for path in beside if self.is_partial(path) and path.is_file())
        for own in OWN_FOLDERS:
            for folder, folders, names in os.walk(self.root / own):
                if ASIDE in folders and Path(folder) == self.private:
                    folders.remove(ASIDE)
                yield from (path for name in names if self.is_partial(path := Path(folder) / name))
