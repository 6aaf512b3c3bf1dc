"""The description of one file in a zip or tar archive."""

from typing import NamedTuple

STORED, DEFLATED = 0, 8
# Values of `Member.method` for members that cannot be read, and the reasons.
OTHER_METHOD, BEYOND_END, DANGLING_LINK, SPARSE = -1, -2, -3, -4
REASONS = {
    OTHER_METHOD: "the member is encrypted, or compressed by a method other than deflate",
    BEYOND_END: "the member lies beyond the end of the archive",
    DANGLING_LINK: "the member is a link to nothing in the archive",
    SPARSE: "the member is a sparse file, which is not supported",
}


class Member(NamedTuple):
    """Where one file is stored in an archive.

    Attributes:
        offset: byte offset of the local header in a zip, of the content in a tar.
        packed_size: bytes in the archive.
        size: bytes when unpacked.
        mtime_ns: modification time, ns since 1970; in a zip plus the CRC-32, so that changed content of the same time
            differs.
        method: compression method as in a zip, 0 for none; a key of `REASONS` if the member cannot be read.
        crc: CRC-32 of the content, -1 if the archive has none.
    """

    offset: int
    packed_size: int
    size: int
    mtime_ns: int
    method: int
    crc: int


def within_archive(member: Member, end: int) -> Member:
    """Return the member, or an unreadable one if it extends beyond the end of the archive, which has `end` bytes."""
    if min(member[:3]) >= 0 and member.offset + member.packed_size <= end and member.size < 1 << 62:
        return member
    return Member(0, 0, 0, member.mtime_ns, BEYOND_END, -1)
