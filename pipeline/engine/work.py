"""The inputs that the steps of one build share."""

from dataclasses import dataclass

from pipeline.cache.paths import Cache
from pipeline.planning.settings import BuildOptions, Settings
from pipeline.planning.survey import Survey


@dataclass(frozen=True, slots=True)
class Work:
    """The inputs that the steps of one build share.

    Attributes:
        found: the survey of the source and the cache, with the plan.
        token: token of the lock that the build holds.
    """

    cache: Cache
    settings: Settings
    found: Survey
    token: str
    options: BuildOptions
