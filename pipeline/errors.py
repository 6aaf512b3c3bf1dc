"""Errors that the user can cause and fix: each is a one-line message and exit code 1."""


class PipelineError(Exception):
    """Base class of errors that the user can fix; the message says where, what is wrong, and what to do."""


class CatalogError(PipelineError):
    """data_catalog.yaml, or an option that overrides it, is wrong."""


class SourceError(PipelineError):
    """The DICOM files or the label file cannot be used."""


class CacheError(PipelineError):
    """The cache cannot be read, written or built."""
