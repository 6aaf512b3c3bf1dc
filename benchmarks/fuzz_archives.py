"""Damage small archives in thousands of ways: each is listed and read, or told in one line.

    python benchmarks/fuzz_archives.py --mutants 10000

Of a damaged archive either all members are there (read, or told one by one), or the archive is refused. Where fewer are
there than before, Python's own readers must not see more: a name that now begins with a dot, a member that became a
folder, an archive that cannot be told from one without damage.
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
    """Archives of each kind, with the same eight members."""
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
    """Write an archive and read all of it; return in a word what came of it.

    Raises:
        Exception: whatever is neither a refusal of the archive nor one of a member.
    """
    file.write_bytes(content)
    try:
        source = open_source(str(file))
        listing = source.scan()
    except SourceError as error:
        return "refused" if len(str(error).splitlines()) == 1 else "refused in several lines"
    told = 0
    for path in listing.paths:
        try:
            source.read(path, Buffer())
        except OSError:
            told += 1
    if type(source).__name__ == "Archive":
        if (there := visible_members(file)) > len(listing.paths):
            return f"lost {there - len(listing.paths)}"
        if len(listing.paths) < len(MEMBERS):
            return "fewer there"
    return "told" if told else "read"


def visible_members(file: Path) -> int:
    """Count the files in an archive as Python's own reader has them, without those that are hidden by their names.

    0 where it refuses the archive. It ends a tar at a damaged header, where ours refuses all of it.
    """
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                names = {info.orig_filename for info in archive.infolist() if not info.orig_filename.endswith("/")}
        else:
            with tarfile.open(file, "r:", errors="surrogateescape") as tar:
                names = {info.name.removeprefix("./") for info in tar if info.isreg() and info.name[-1:] != "/"}
    except Exception:  # whatever it raises for what it does not read
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
