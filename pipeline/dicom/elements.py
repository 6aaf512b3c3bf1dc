"""Go from element to element of a data set in Little Endian, compiled."""

from numba import boolean, int64, njit, types, uint8

AFTER_META = 0x00030000


@njit(inline="always")
def _number(body, at):  # type: ignore[no-untyped-def]
    """The unsigned number in the two bytes at a place."""
    return int64(body[at]) | int64(body[at + 1]) << 8


_INPUT = types.Array(uint8, 1, "C", readonly=True)


_OUTPUT = types.Tuple((int64, int64, boolean, int64))


@njit(_OUTPUT(_INPUT, int64, int64[::1], int64, uint8[::1], int64[:, ::1]), cache=True, nogil=True)
def elements(data, at, wanted, until, head_bytes, found):  # type: ignore[no-untyped-def]
    """`walk.walk` into an array; return how many places, and the rest of a `Walk`.

    To return the array would take as long again, and to assign rows as a whole six times as long to compile.
    """
    count, begin, implicit = 0, int64(-1), False
    while at <= len(data) - 12 and count < len(found):
        tag, vr, length = _number(data, at) << 16 | _number(data, at + 2), _number(data, at + 4), _number(data, at + 6)
        if begin < 0 and tag >= AFTER_META:
            begin, implicit = at, head_bytes[vr] == 0
        if tag >= until:
            return count, begin, implicit, at
        at += 8
        if implicit:
            length = vr | length << 16
        elif head_bytes[vr] == 12:
            length = _number(data, at) | _number(data, at + 2) << 16
            at += 4
        elif head_bytes[vr] == 0:
            break
        if begin >= 0 and tag < AFTER_META:
            break
        for one in wanted:
            if one == tag:
                found[count, 0], found[count, 1], found[count, 2] = tag, at, length
                count += 1
        at += length
    return count, begin, implicit, int64(-1)
