"""Read and write DICOM; nothing else knows its tags."""
