"""Write archives, and read all files of a source."""

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

from pipeline.source.files import Buffer
from pipeline.source.sources import open_source

CONTENTS = {"b/2.dcm": b"second" * 50, "a.dcm": b"first", "b/c/3": b"", "b/2": b"no suffix"}


def read_all(src: str) -> dict[str, bytes]:
    """Return path -> content of all files of a source, which is pickled as if sent to another process."""
    source = pickle.loads(pickle.dumps(open_source(src)))
    listing, buffer = source.scan(), Buffer()
    found = {}
    for path, size, mtime_ns in zip(listing.paths, listing.sizes, listing.mtimes_ns, strict=True):
        content, stamp = source.read(path, buffer)
        assert stamp == (size, mtime_ns)
        found[path] = bytes(content)
    return found


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return str(path)


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> str:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_500_000_000
            archive.addfile(info, io.BytesIO(content))
    return str(path)
