"""This package finds the files of a source and reads them: folders, archives, addresses."""
