"""Counts with their nouns: 1 slice, 2 slices, 1,000 series."""

UNCHANGED = ("series",)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, given in the singular: `counted(2, "study")` is "2 studies"."""
    if number == 1 or noun in UNCHANGED:
        return f"{number:,} {noun}"
    return f"{number:,} {noun[:-1]}ies" if noun.endswith("y") else f"{number:,} {noun}s"
