"""Starting servers: the embedded llama.cpp."""
