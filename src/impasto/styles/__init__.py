"""A style on disk and on the Hub: save, load, sampling defaults, card, convert, combine."""
