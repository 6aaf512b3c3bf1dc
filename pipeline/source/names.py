"""Convert names of source files to text that is safe in tables and on terminals, and back.

A name is bytes, and may contain anything that a file system, an archive or a store allows. In its text, a byte that is
not UTF-8, and each byte of a character that could break a table, a terminal or a spreadsheet, becomes the private-use
character U+F700 + byte. Every sequence of bytes thus has exactly one text, which can be converted back.
"""

import unicodedata

_FIRST, _LAST = 0xF700, 0xF7FF
# Control characters, direction marks and other invisible characters, lone surrogates, line and paragraph separators.
_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
# A spreadsheet takes a cell that starts with one of these for a formula.
_FORMULA = "=+-@"


def listed_name(path: str) -> str:
    """Return the text of a path from a file system, an archive or a command line.

    Args:
        path: bytes that are not UTF-8 are lone surrogates, as in `os.fsdecode`.
    """
    if path.isprintable() and path[:1] not in _FORMULA:
        return path
    return "".join(
        _as_private_use(char) if _is_unsafe(char) or (place == 0 and char in _FORMULA) else char
        for place, char in enumerate(path)
    )


def opened_name(path: str) -> str:
    """Return the path to open for a text: the inverse of `listed_name`."""
    if path.isprintable():
        return path
    return b"".join(
        bytes([ord(char) - _FIRST]) if _FIRST <= ord(char) <= _LAST else char.encode("utf-8", "surrogateescape")
        for char in path
    ).decode("utf-8", "surrogateescape")


def escaped(text: str) -> str:
    r"""Return text that contains results of `listed_name`, escaped for a terminal or a page.

    A private-use character is written as its byte, `\xNN`; any other character that is not printable gets Python's
    escape.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code - _FIRST:02x}" if _FIRST <= code <= _LAST else char.encode("unicode_escape").decode()


def _is_unsafe(char: str) -> bool:
    return unicodedata.category(char) in _UNSAFE or _FIRST <= ord(char) <= _LAST


def _as_private_use(char: str) -> str:
    is_byte = 0xDC80 <= ord(char) <= 0xDCFF
    return "".join(
        chr(_FIRST + byte) for byte in char.encode("utf-8", "surrogateescape" if is_byte else "surrogatepass")
    )
