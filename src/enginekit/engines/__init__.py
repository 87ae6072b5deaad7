"""How to talk to each engine: one file each, plus what they share (names with an underscore)."""
