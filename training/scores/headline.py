"""The headline scores of a set: those of the class `any`, or the mean over the classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ANY = "any"  # the class that all others imply, in the RSNA 2019 competition


@dataclass(frozen=True)
class Headline:
    """The headline scores of a set.

    Attributes:
        words: phrase to put after the name of a score, such as "of any".
        scores: name -> value, None if undefined.
        spans: name -> 95 % interval, None if there is none.
        n: number of labelled slices; for a mean over the classes, the largest of any class.
    """

    words: str
    scores: Mapping[str, Any]
    spans: Mapping[str, Any]
    n: int


def main_class(classes: Sequence[str]) -> str | None:
    """Return `any`, or the only class; None if there are several classes without `any`."""
    if ANY in classes:
        return ANY
    return classes[0] if len(classes) == 1 else None


def headline(content: Mapping[str, Any]) -> Headline:
    """Return the headline of a result of `metrics.score`, which may also have `intervals`."""
    classes, spans = content["classes"], content.get("intervals") or {}
    if (name := main_class(list(classes))) is not None:
        return Headline(f"of {name}", classes[name], spans.get("classes", {}).get(name, {}), classes[name]["n"])
    most = max((of["n"] for of in classes.values()), default=0)
    return Headline("mean over the classes", content["macro"], spans.get("macro", {}), most)
