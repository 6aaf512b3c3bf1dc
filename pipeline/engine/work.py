"""Hold what every step of one build needs."""

from dataclasses import dataclass

from pipeline.cache.paths import Cache
from pipeline.planning.settings import BuildOptions, Settings
from pipeline.planning.survey import Survey


@dataclass(frozen=True, slots=True)
class Work:
    """What every step of one build needs.

    Attributes:
        token: of the lock that the build holds.
    """

    cache: Cache
    settings: Settings
    found: Survey
    token: str
    options: BuildOptions
