"""Nouns that can do nothing: what is known of machines, models and engines."""
