"""Looking at a model, from a name to a file header, and saying what it is as a `ModelSpec`."""
