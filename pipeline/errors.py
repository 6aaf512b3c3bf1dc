"""The errors that a user can cause and can fix: one line each, exit code 1."""


class PipelineError(Exception):
    """The user can act on it: the message says where, what is wrong, and the way out."""


class CatalogError(PipelineError):
    """data_catalog.yaml, or an option that overrides it, is wrong."""


class SourceError(PipelineError):
    """The DICOM files or the label file cannot be used."""


class CacheError(PipelineError):
    """The cache cannot be read, written or built."""
