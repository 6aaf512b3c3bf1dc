"""Open the source at a path or an address: a folder, an archive, a single file, or a remote folder."""

import os
import stat
from typing import Protocol

from pipeline.errors import SourceError
from pipeline.source.archives import Archive, archive_kind
from pipeline.source.files import Buffer
from pipeline.source.folder import Folder, SingleFile
from pipeline.source.listing import Listing, Stamp
from pipeline.source.remote import Remote


class Source(Protocol):
    """The place that the DICOM files are read from; it is small, can be pickled, and keeps no file open."""

    def scan(self) -> Listing:
        """List the files.

        Raises:
            SourceError: there is no file, or the source cannot be listed.
        """

    def read(self, path: str, buffer: Buffer) -> tuple[memoryview, Stamp]:
        """Read a complete file of the listing.

        Returns:
            its content, valid until the buffer is used again, and its stamp.

        Raises:
            FileNotFoundError: it has vanished.
            OSError: it cannot be read.
            SourceError: the server or the archive that holds it cannot be read.
        """


def open_source(src: str) -> Source:
    """Return the source at a path or an address.

    Raises:
        SourceError: there is no such path, or it cannot be read.
    """
    if "://" in src:
        return Remote(src.rstrip("/"))
    try:
        if stat.S_ISDIR(os.stat(src).st_mode):
            return Folder(os.path.abspath(src))
        file = os.path.abspath(src)
        kind = archive_kind(file)
    except OSError as error:
        raise SourceError(f"{src}: {error.strerror}; give a folder of DICOM files, an archive or one file") from None
    return Archive(file, kind) if kind else SingleFile(file)
