"""Read DICOM files; the only package that knows DICOM tags."""
