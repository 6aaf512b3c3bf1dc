"""Import the user's own functions, which settings refer to as module:function."""

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from training.errors import ConfigError, RunError

_ANNOUNCED: set[tuple[Path, str]] = set()


def is_own(name: str) -> bool:
    """Return whether a setting refers to the user's own function."""
    return ":" in name and not name.startswith("timm:")


def find_function(name: str, setting: str) -> Callable[..., Any]:
    """Import module:function; the module may be in the current folder.

    Raises:
        ConfigError: if there is no such module or function, or importing the module fails.
    """
    module, _, path = name.partition(":")
    _search_here()
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # importing the module may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"--{setting} {name}: cannot be imported ({reason}); run the command in the module's folder, or set "
            "PYTHONPATH to it"
        ) from error
    if not callable(found):
        raise ConfigError(f"--{setting} {name}: is a {type(found).__name__}; name a function")
    return found


def announce(run: Path, names: Iterable[str]) -> None:
    """Print to stderr which files the settings of a run will import, before they are imported and once per process.

    Args:
        run: its folder.
        names: of models, losses and augmentations; those that are not the user's own functions are ignored.

    Raises:
        RunError: if the code is in the run's folder, and so came with the run.
    """
    for name in filter(is_own, names):
        file = _file_of(name.partition(":")[0])
        if file is not None and file.resolve().is_relative_to(run.resolve()):
            raise RunError(
                f"{file}: {name} in settings.json is code that came with the run; read it, then move it out of the "
                "folder"
            )
        if (run, name) not in _ANNOUNCED:
            _ANNOUNCED.add((run, name))
            tqdm.write(f"{run / 'settings.json'} names {name!r}: running code from {str(file)!r}", sys.stderr)


def _file_of(module: str) -> Path | None:
    """Return the file that a module, or the package that it is in, would be imported from, without importing it."""
    _search_here()
    try:
        found = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError, AttributeError):
        return None
    if found is None or (found.origin is None and not found.submodule_search_locations):
        return None
    return Path(found.origin or next(iter(found.submodule_search_locations or ())))


def _search_here() -> None:
    """Add the current folder to the module search path."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)


def name_of(value: str | Callable[..., Any], setting: str) -> str:
    """Return the text form of a setting: text as it is, a function as module:function.

    Raises:
        ConfigError: if another process could not import the function.
    """
    if isinstance(value, str):
        return value
    module, path = getattr(value, "__module__", ""), getattr(value, "__qualname__", "")
    if module in ("", "__main__") or not path or "<" in path:
        raise ConfigError(
            f"{setting}: {value!r} could not be imported again to resume or evaluate the run; put it into its own "
            "module, as a named function"
        )
    return f"{module}:{path}"


def code_digest(name: str, setting: str) -> str:
    """Return the first 12 hex digits of the SHA-256 of the file that the user's own function is in."""
    file = inspect.getsourcefile(inspect.unwrap(find_function(name, setting)))
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12] if file else "unknown"
