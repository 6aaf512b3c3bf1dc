"""Choose between the compiled form of a hot path and the plain one, which is also its specification."""

import warnings
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def compiled_or_plain(what: str, load: Callable[[], T], self_test: Callable[[T], bool], plain: T) -> T:
    """Return the compiled form if it loads and passes its self-test, else the plain one with a one-line warning.

    Args:
        what: name of the hot path, for the warning.
        load: imports the compiled form; with another numba, LLVM or processor it may raise anything.
        self_test: returns whether the compiled form is correct on a small input.
        plain: the form that needs only NumPy and gives the same results.
    """
    try:
        compiled = load()
        reason = None if self_test(compiled) else "its results differ from those of the plain one"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    if reason is None:
        return compiled
    warnings.warn(
        f"the compiled {what} cannot be used here ({reason}); using the plain one instead: slower, with the same "
        "results. To fix this: pip install --upgrade numba",
        RuntimeWarning,
        stacklevel=2,
    )
    return plain
