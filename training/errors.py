"""The errors that a user can cause and can mend: one line each, exit code 1."""


class TrainingError(Exception):
    """The user can act on it: the message says where, what is wrong, and the way out."""


class CacheError(TrainingError):
    """The cache is missing, unfinished, damaged, or not the one that the run wants."""


class ConfigError(TrainingError):
    """A setting of the run is wrong, or does not fit the cache."""


class RunError(TrainingError):
    """A run's folder cannot be read, written or resumed."""


class StudyError(TrainingError):
    """A study cannot be answered: nothing in it is a head-CT slice, it is too large, or the pipeline is missing."""
