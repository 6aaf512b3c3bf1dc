"""Iterate over the elements of a Little Endian data set, compiled."""

from numba import boolean, int64, njit, types, uint8

AFTER_META = 0x00030000


@njit(inline="always")
def _number(body, at):  # type: ignore[no-untyped-def]
    """Return the unsigned 16-bit number at an offset."""
    return int64(body[at]) | int64(body[at + 1]) << 8


_INPUT = types.Array(uint8, 1, "C", readonly=True)


_OUTPUT = types.Tuple((int64, int64, boolean, int64))


@njit(_OUTPUT(_INPUT, int64, int64[::1], int64, uint8[::1], int64[:, ::1]), cache=True, nogil=True)
def elements(data, at, wanted, until, head_bytes, found):  # type: ignore[no-untyped-def]
    """Fill `found` with the places of a `Walk`; return their number and its other fields.

    Returning an array would double the time, and assigning whole rows would take six times as long to compile.
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
        for wanted_tag in wanted:
            if wanted_tag == tag:
                found[count, 0], found[count, 1], found[count, 2] = tag, at, length
                count += 1
        at += length
    return count, begin, implicit, int64(-1)
