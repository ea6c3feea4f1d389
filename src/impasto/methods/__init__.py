"""One file per published system, to be read beside its paper."""
