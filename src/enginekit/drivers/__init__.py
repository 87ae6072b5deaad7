"""What touches sockets: a blocking driver on urllib3, an async one on aiohttp, and the framing."""
