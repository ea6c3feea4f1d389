"""The judges: independent classifiers of style and concept."""
