"""This package reads and writes DICOM; nothing else knows its tags."""
