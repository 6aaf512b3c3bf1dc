"""The facts of one file in an archive, whatever its kind."""

from typing import NamedTuple

STORED, DEFLATED = 0, 8
# What stands in place of a method where a member cannot be read, and why.
OTHER_METHOD, BEYOND_END, LEADS_NOWHERE, SPARSE = -1, -2, -3, -4
REASONS = {
    OTHER_METHOD: "the member is encrypted, or compressed by a method other than deflate",
    BEYOND_END: "the member lies beyond the end of the archive",
    LEADS_NOWHERE: "the member is a link to nothing in the archive",
    SPARSE: "the member is a sparse file, which is not supported",
}


class Member(NamedTuple):
    """Where one file lies in an archive.

    Attributes:
        offset: of the local header in a zip, of the content in a tar.
        held: bytes in the archive.
        size: bytes when unpacked.
        mtime_ns: modification time, ns since 1970, plus the checksum: content that changes under the same time shows.
        method: compression method as in a zip, 0 for none; a key of `REASONS` for one that is not read here.
        crc: CRC-32 of the content, or -1 where the archive has none.
    """

    offset: int
    held: int
    size: int
    mtime_ns: int
    method: int
    crc: int


def placed(member: Member, end: int) -> Member:
    """Return the member, or one that is not read where it claims to lie beyond the end of its archive."""
    if min(member[:3]) >= 0 and member.offset + member.held <= end and member.size < 1 << 62:
        return member
    return Member(0, 0, 0, member.mtime_ns, BEYOND_END, -1)
