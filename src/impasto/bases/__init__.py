"""Base models: cards, the Hub, single files, the embedded ones."""
