"""Arithmetic of memory and speed: facts in, bytes and seconds out, no input or output."""
