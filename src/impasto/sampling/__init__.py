"""Prompts and seeds to images."""
