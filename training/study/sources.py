"""The input of a study as one folder: from folders, zip archives, single files, or several of these."""

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
    """The limits of a study; larger archives are refused before they are unpacked.

    Attributes:
        files: maximum number of files in all archives.
        bytes: maximum unpacked size of all archives; 3,000 slices of 512 x 512 take 1.6 GB.
    """

    files: int = 50_000
    bytes: int = 8 << 30


def gather(given: Sequence[Path], work: Path, limits: Limits, *, keep_names: bool = True) -> Path:
    """Return one folder with all inputs; a single folder is returned unchanged.

    Args:
        given: folders, zip archives and DICOM files.
        work: an empty folder for unpacked archives and links.
        limits: limits of the archives.
        keep_names: whether to keep the names in archives, which may contain patient names, instead of numbers.

    Raises:
        StudyError: if an input does not exist, cannot be read or unpacked, or exceeds the limits.
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
    """Return whether a file starts like a zip archive, which no DICOM preamble is expected to do."""
    try:
        with open(path, "rb") as file:
            return file.read(len(ZIP_BEGINS)) == ZIP_BEGINS
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror}); give a readable file") from error


def unpack(archive: Path, folder: Path, limits: Limits, *, keep_names: bool) -> Limits:
    """Unpack a zip archive into a new folder, and return the remaining limits.

    zipfile reads no more of a member than its stated size, and removes `..` and leading `/` from names.

    Raises:
        StudyError: if the archive is damaged, encrypted or too large; the folder is then removed.
        OSError: if the disk cannot be written; the folder is then removed.
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
