"""The independent scorers of style and concept."""
