"""Write the name of a source file in tables and on a terminal: one text for every name.

A name is bytes, and may hold whatever a file system, an archive or a store lets pass. In the text that stands for it a
byte that is no UTF-8, and each byte of a character that could break a table, a terminal or a spreadsheet, is the
private-use character U+F700 + byte. So every sequence of bytes has one text, and the text leads back to the bytes.
"""

import unicodedata

_FIRST, _LAST = 0xF700, 0xF7FF
# Controls, direction marks and other invisible ones, lone surrogates, ends of lines and paragraphs.
_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
# A spreadsheet takes a cell that begins so for a formula.
_FORMULA = "=+-@"


def listed_name(path: str) -> str:
    """Return the text of a path that the file system, an archive or a command line gave.

    Args:
        path: bytes that are no UTF-8 as Python has them, lone surrogates.
    """
    if path.isprintable() and path[:1] not in _FORMULA:
        return path
    return "".join(
        _bytes_shown(one) if _is_unsafe(one) or (place == 0 and one in _FORMULA) else one
        for place, one in enumerate(path)
    )


def opened_name(path: str) -> str:
    """Return the inverse: the path of a text as the file system has it."""
    if path.isprintable():
        return path
    return b"".join(
        bytes([ord(one) - _FIRST]) if _FIRST <= ord(one) <= _LAST else one.encode("utf-8", "surrogateescape")
        for one in path
    ).decode("utf-8", "surrogateescape")


def escaped(text: str) -> str:
    r"""Return text that holds names, as `listed_name` has them, for a terminal or a page.

    A byte that could do something there is `\xNN`; any other character that cannot be shown is Python's escape.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _escape(one) for one in text)


def _escape(one: str) -> str:
    code = ord(one)
    return f"\\x{code - _FIRST:02x}" if _FIRST <= code <= _LAST else one.encode("unicode_escape").decode()


def _is_unsafe(one: str) -> bool:
    return unicodedata.category(one) in _UNSAFE or _FIRST <= ord(one) <= _LAST


def _bytes_shown(one: str) -> str:
    code = ord(one)
    escaped = 0xDC80 <= code <= 0xDCFF
    return "".join(
        chr(_FIRST + byte) for byte in one.encode("utf-8", "surrogateescape" if escaped else "surrogatepass")
    )
