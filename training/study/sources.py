"""Make one folder of what a study is given as: folders, zip archives, single files, or several of them."""

import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.errors import StudyError
from training.system import REFUSALS

ZIP_BEGINS = b"PK\x03\x04"


@dataclass(frozen=True)
class Limits:
    """What a study may take; a larger one is refused before it is unpacked.

    Attributes:
        files: in all archives together.
        bytes: unpacked, of all archives together. 3,000 slices of 512 x 512 take 1.6 GB.
    """

    files: int = 50_000
    bytes: int = 8 << 30


def gather(given: Sequence[Path], work: Path, limits: Limits, *, keep_names: bool = True) -> Path:
    """Return one folder that holds everything given; a single folder is taken as it lies.

    Args:
        given: folders, zip archives, DICOM files.
        work: an empty folder for what must be unpacked or linked.
        keep_names: False numbers the members of archives: a member's name may name a patient.

    Raises:
        StudyError: something is not there, is an archive that cannot be unpacked, or exceeds the limits.
    """
    for path in given:
        if not path.exists():
            raise StudyError(f"{path}: does not exist; give a folder, a zip archive or a DICOM file")
    if len(given) == 1 and given[0].is_dir():
        return given[0]
    left = limits
    for number, path in enumerate(given, 1):
        place = work / f"{number}-{path.name}" if keep_names else work / str(number)
        if path.is_dir() or not is_zip(path):
            place.symlink_to(path.absolute(), target_is_directory=path.is_dir())
        else:
            left = unpack(path, place, left, keep_names=keep_names)
    return work


def is_zip(path: Path) -> bool:
    """Whether a file begins as a zip archive does; a DICOM file's preamble may be anything, but is not this."""
    try:
        with open(path, "rb") as file:
            return file.read(len(ZIP_BEGINS)) == ZIP_BEGINS
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror}); give a file that can") from error


def unpack(archive: Path, folder: Path, limits: Limits, *, keep_names: bool) -> Limits:
    """Unpack a zip archive into a new folder; return what is left of the limits.

    zipfile reads no more of a member than the size it states, and takes `..` and `/` out of names.

    Raises:
        StudyError: it is damaged, encrypted or too large; the folder is then gone.
        OSError: the disk refuses to be written; so too.
    """
    name = archive if keep_names else "the archive"
    folder.mkdir(parents=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            left = _left(name, members, limits)
            for number, member in enumerate(members):
                if keep_names:
                    opened.extract(member, folder)
                else:
                    with opened.open(member) as packed, open(folder / f"{number:06d}", "wb") as file:
                        shutil.copyfileobj(packed, file, 1 << 20)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError, ValueError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in REFUSALS:
            raise
        what = _why(error)
        raise StudyError(f"{name}: cannot be unpacked ({what}); unpack it yourself and give the folder") from error
    return left


def _left(name: Path | str, members: Sequence[zipfile.ZipInfo], limits: Limits) -> Limits:
    left = Limits(limits.files - len(members), limits.bytes - sum(member.file_size for member in members))
    if left.files < 0 or left.bytes < 0:
        raise StudyError(
            f"{name}: more than {limits.files:,} files or {limits.bytes / 1e9:.1f} GB unpacked; "
            "give one study at a time"
        )
    return left


def _why(error: Exception) -> str:
    if isinstance(error, RuntimeError) and "encrypted" in str(error):
        return "it is encrypted"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return "the archive is damaged"
