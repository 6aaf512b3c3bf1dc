"""The errors that a user can cause and can fix: one line each, exit code 1."""


class TrainingError(Exception):
    """The user can act on it: the message says where, what is wrong, and the way out."""


class CacheError(TrainingError):
    """The cache is missing, unfinished, damaged, or not the one that the run wants."""


class ConfigError(TrainingError):
    """A setting of the run is wrong, or does not fit the cache."""


class RunError(TrainingError):
    """A run's folder cannot be read, written or resumed."""


AGAIN = "run the same command again"


class NotWrittenError(RunError):
    """A file cannot be written: a full disk, a read-only mount. What was there before is whole.

    Attributes:
        what: names the file and the reason.
    """

    def __init__(self, what: str, again: str = AGAIN) -> None:
        """Say it with the way out; `again` is what goes on once there is room."""
        super().__init__(
            f"{what}; what was there before is intact: free up space, or make the folder writable, and {again}"
        )
        self.what = what


class NoRoomError(TrainingError):
    """The temporary files of a study cannot be written: a full disk, a read-only mount."""


class StudyError(TrainingError):
    """A study cannot be answered: nothing in it is a head-CT slice, it is too large, or the pipeline is missing."""
