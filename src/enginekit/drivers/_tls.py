"""TLS contexts: built on first use, one per combination of settings, none for http://.

A context costs tens of milliseconds, because it reads the system's store of authorities.
"""

from __future__ import annotations

import ssl
from functools import lru_cache

from enginekit.errors import ConfigError


@lru_cache(maxsize=32)
def context(
    ca_file: str | None = None, client_cert: str | None = None, verify: bool = True
) -> ssl.SSLContext:
    """The context for these settings (see `enginekit.engine.Target`).

    `ca_file` replaces the system's authorities. Raises ConfigError that names the file when one
    cannot be read.
    """
    try:
        made = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ca_file {ca_file!r} cannot be read as PEM: {_why(error)}") from error
    if not verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    if client_cert is not None:
        try:
            made.load_cert_chain(client_cert)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"client_cert {client_cert!r} must be a PEM file with a certificate and its key "
                f"without a password: {_why(error)}"
            ) from error
    made.set_alpn_protocols(["http/1.1"])
    return made


def _why(error: OSError) -> str:
    return error.strerror or str(error)
