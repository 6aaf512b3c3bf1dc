"""Find the files of a source and read them: folders, archives, addresses."""
