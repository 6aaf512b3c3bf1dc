"""Errors that the user can fix: each is reported in one line, with exit code 1."""


class TrainingError(Exception):
    """Base class of errors that the user can fix: the message says where, what is wrong and what to do."""


class CacheError(TrainingError):
    """The cache is missing, unfinished, damaged, or not the one that the run needs."""


class ConfigError(TrainingError):
    """A setting of the run is wrong, or does not fit the cache."""


class RunError(TrainingError):
    """A run's folder cannot be read, written or resumed."""


AGAIN = "run the same command again"


class NotWrittenError(RunError):
    """A file cannot be written, because of a full disk or a read-only mount. Existing files are intact.

    Attributes:
        what: the file and the reason.
    """

    def __init__(self, what: str, again: str = AGAIN) -> None:
        """Build the message; `again` says how to continue once the file can be written."""
        super().__init__(
            f"{what}; what was there before is intact: free up space, or make the folder writable, and {again}"
        )
        self.what = what


class NoRoomError(TrainingError):
    """The temporary files of a study cannot be written, because of a full disk or a read-only mount."""


class StudyError(TrainingError):
    """A study cannot be answered: it contains no head-CT slice, it is too large, or the pipeline is not installed."""
