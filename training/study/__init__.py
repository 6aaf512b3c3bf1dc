"""Answer a study: DICOM in, probabilities with their decisions out, as tables, a page, or DICOM."""
