"""List and read the files of a source: a folder, an archive, a single file, or an address."""
