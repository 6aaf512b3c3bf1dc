"""Choose the scores that stand for a whole set: those of `any`, or the mean over the classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ANY = "any"  # the class that the others imply, in the competition's list


@dataclass(frozen=True)
class Headline:
    """The scores that stand for a set.

    Attributes:
        words: what follows a score's name, "of any" say.
        scores: by name, None where undefined. spans: their intervals.
        n: labelled slices, the most of any class where it is a mean over the classes.
    """

    words: str
    scores: Mapping[str, Any]
    spans: Mapping[str, Any]
    n: int


def main_class(classes: Sequence[str]) -> str | None:
    """Return the class that stands for all: `any`, or the only one; None where there are several and no `any`."""
    if ANY in classes:
        return ANY
    return classes[0] if len(classes) == 1 else None


def headline(content: Mapping[str, Any]) -> Headline:
    """Return the headline of what `metrics.score` gives, with `intervals` beside it where there are any."""
    classes, spans = content["classes"], content.get("intervals") or {}
    if (name := main_class(list(classes))) is not None:
        return Headline(f"of {name}", classes[name], spans.get("classes", {}).get(name, {}), classes[name]["n"])
    most = max((of["n"] for of in classes.values()), default=0)
    return Headline("mean over the classes", content["macro"], spans.get("macro", {}), most)
