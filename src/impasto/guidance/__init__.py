"""Guidance: what is done to the base's predictions while a picture is sampled."""
