"""Damage small archives in thousands of ways: each must be read or refused in one line.

    python benchmarks/fuzz_archives.py --mutants 10000

All members of a damaged archive must be listed (and read, or reported one by one), or the archive must be refused. If
fewer members are listed than before, Python's own readers must not see more either: a name may now begin with a dot, a
member may have become a folder, or the archive may look undamaged.
"""

import io
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from fuzz import DAMAGES
from mutants import campaign

from pipeline.errors import SourceError
from pipeline.source.files import Buffer
from pipeline.source.sources import open_source

MEMBERS = {f"study/{number}.dcm": bytes([number]) * 300 for number in range(8)}


def seeds() -> dict[str, bytes]:
    """Return an archive of each kind, all with the same eight members."""
    found = {}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, content in MEMBERS.items():
                archive.writestr(name, content)
        found[f"zip {method}"] = file.getvalue()
    for style in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=style) as tar:
            for name, content in MEMBERS.items():
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(content), 1_500_000_000.5
                tar.addfile(info, io.BytesIO(content))
        found[f"tar {style}"] = file.getvalue()
    return found


def judge(file: Path, content: bytes) -> str:
    """Write an archive, read all of it, and return the outcome.

    Raises:
        Exception: anything other than a refusal of the archive or of a member.
    """
    file.write_bytes(content)
    try:
        source = open_source(str(file))
        listing = source.scan()
    except SourceError as error:
        return "refused" if len(str(error).splitlines()) == 1 else "refused in several lines"
    unreadable = 0
    for path in listing.paths:
        try:
            source.read(path, Buffer())
        except OSError:
            unreadable += 1
    if type(source).__name__ == "Archive":
        if (visible := visible_members(file)) > len(listing.paths):
            return f"lost {visible - len(listing.paths)}"
        if len(listing.paths) < len(MEMBERS):
            return "fewer members"
    return "members unreadable" if unreadable else "read"


def visible_members(file: Path) -> int:
    """Count the files that Python's own reader lists in an archive, without hidden ones.

    Return 0 if it refuses the archive. It ends a tar at a damaged header, whereas ours refuses all of it.
    """
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                names = {info.orig_filename for info in archive.infolist() if not info.orig_filename.endswith("/")}
        else:
            with tarfile.open(file, "r:", errors="surrogateescape") as tar:
                names = {info.name.removeprefix("./") for info in tar if info.isreg() and info.name[-1:] != "/"}
    except Exception:  # it raises many types
        return 0
    parts = [name.split("/") for name in names]
    return sum(of[0] != "__MACOSX" and not any(part[:1] == "." and part != ".." for part in of) for of in parts)


def main() -> int:
    """Run the campaign; archives are judged as files."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mutant.bin"
        return campaign(__doc__, seeds(), DAMAGES, lambda mutant: judge(file, mutant))


if __name__ == "__main__":
    sys.exit(main())
