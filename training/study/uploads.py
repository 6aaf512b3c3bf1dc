"""The body of a request, written to disk: a form of DICOM files, a STOW-RS body, a zip archive, or one file."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from python_multipart.multipart import MultipartParser, parse_options_header

from training.errors import StudyError
from training.study.sources import Limits, is_zip, unpack

ACCEPTED = (
    "multipart/form-data with DICOM files, multipart/related; type=application/dicom as in STOW-RS, "
    "application/zip, or application/dicom"
)
MAX_PARTS = 50_000


class Refused(StudyError):
    """A request was refused.

    Attributes:
        status: HTTP status code.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def receive(content_type: str, body: AsyncIterator[bytes], folder: Path, max_bytes: int) -> None:
    """Write the files of a request's body to a folder, and unpack zip archives among them.

    The files are numbered, because their names may contain a patient's.

    Args:
        content_type: the Content-Type header.
        body: the body in pieces.
        folder: an empty folder.
        max_bytes: maximum size of the body; archives may take eight times as much when unpacked.

    Raises:
        Refused: if the media type is not accepted, or the body is truncated, damaged or too large.
        StudyError: if an archive cannot be unpacked.
    """
    kind, options = parse_options_header(content_type)
    parts = _Parts(folder)
    writer: _Form | _Whole
    if kind in (b"multipart/form-data", b"multipart/related") and options.get(b"boundary"):
        writer = _Form(options[b"boundary"], parts)
    elif kind in (b"application/zip", b"application/x-zip-compressed", b"application/dicom"):
        writer = _Whole(parts)
    else:
        raise Refused(415, f"the body's media type is not accepted; send {ACCEPTED}")
    received = 0
    try:
        async for piece in body:
            received += len(piece)
            if received > max_bytes:
                raise Refused(413, f"the body is larger than {max_bytes / 1e6:,.0f} MB; send one study at a time")
            writer.write(piece)
        writer.finish()
    finally:
        parts.end()
    await asyncio.to_thread(_unpack_all, parts.paths, max_bytes)


class _Parts:
    """The files of a body, written one after another."""

    def __init__(self, folder: Path) -> None:
        self.paths: list[Path] = []
        self._folder = folder
        self._file: BinaryIO | None = None

    def begin(self) -> None:
        if len(self.paths) >= MAX_PARTS:
            raise Refused(413, f"the body has more than {MAX_PARTS:,} parts; send one study at a time")
        self.paths.append(self._folder / f"{len(self.paths):06d}")
        self._file = open(self.paths[-1], "wb")  # noqa: SIM115

    def data(self, data: bytes, start: int, end: int) -> None:
        assert self._file is not None
        self._file.write(memoryview(data)[start:end])

    def end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class _Whole:
    """A body that consists of one file."""

    def __init__(self, parts: _Parts) -> None:
        self._parts = parts
        parts.begin()

    def write(self, piece: bytes) -> None:
        self._parts.data(piece, 0, len(piece))

    def finish(self) -> None:
        self._parts.end()


class _Form:
    """A multipart body; the headers of its parts are ignored, since the first bytes show what a part is."""

    def __init__(self, boundary: bytes, parts: _Parts) -> None:
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": parts.begin,
                "on_part_data": parts.data,
                "on_part_end": parts.end,
                "on_end": self._end,
            },
        )

    def _end(self) -> None:
        self._ended = True

    def write(self, piece: bytes) -> None:
        try:
            self._parser.write(piece)
        except ValueError as error:  # errors of python-multipart are ValueErrors
            raise Refused(400, "the multipart body is damaged; send it again") from error

    def finish(self) -> None:
        if not self._ended:
            raise Refused(400, "the multipart body has no end; send it again")


def _unpack_all(paths: list[Path], max_bytes: int) -> None:
    left = Limits(files=MAX_PARTS, bytes=8 * max_bytes)
    for path in paths:
        if is_zip(path):
            left = unpack(path, path.with_suffix(".d"), left, keep_names=False)
            path.unlink()
