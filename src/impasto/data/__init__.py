"""Reference pictures and captions, read with care, and prepared once."""
