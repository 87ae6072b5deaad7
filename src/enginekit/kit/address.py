"""Where servers are, by the settings, and which key and certificates go there."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from enginekit import registry
from enginekit.config import Config, Setting
from enginekit.engine import Engine, Target
from enginekit.errors import ConfigError
from enginekit.kit.budgets import budgets_of


def address_of(config: Config, engine: str) -> str:
    """Where the settings say that a server of this kind is, without asking.

    Raises ConfigError when they name none and the engine has no default, or it is no address.
    """
    url = config.for_engine("base_url", engine)
    if url is None:
        table = config.engine_table(engine)
        like = str(table["like"].value) if "like" in table else engine
        url = default_url(registry.engine_class(like), engine)
    return clean_url(str(url.value), url.where)


def target_for(config: Config, engine: str, url: Setting) -> Target:
    """The target of an address, with its key if the key may go there.

    Raises ConfigError for an address that is not one, UntrustedOrigin for a key that must not go.
    """
    base = clean_url(str(url.value), url.where)
    key = config.for_engine("api_key", engine) if engine else config.find("api_key")
    headers: tuple[tuple[str, str], ...] = ()
    if key is not None:
        secret = _secret(key.value)
        if secret:
            config.check_key(key, url, origin_of(base))
            headers = bearer(secret)
    tls: dict[str, Any] = {}
    for name in ("ca_file", "client_cert", "verify", "proxy"):
        setting = config.for_engine(name, engine) if engine else config.find(name)
        if setting is not None:
            tls[name] = setting.value
            if key is not None and headers:
                config.check_way(key, setting, origin_of(base))
    return replace(
        Target(base_url=base, headers=headers, connect=budgets_of(config).connect), **tls
    )


def origin_of(url: str) -> str:
    """Scheme, host and port of an address."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme != "unix" else url


def _secret(value: Any) -> str:
    reveal = getattr(value, "get_secret_value", None)
    return str(reveal()) if reveal is not None else str(value)


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    """The header that carries a key."""
    return (("authorization", f"Bearer {key}"),)


def clean_url(url: str, where: str) -> str:
    """An address as targets hold it. Raises ConfigError, naming `where`, for what is none."""
    url = url.strip().rstrip("/")
    if "://" not in url:
        url = f"http://{url}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "unix") or (
        parts.scheme != "unix" and not parts.hostname
    ):
        raise ConfigError(
            f"{where}: {url!r} is not an address; use http://host:port, https://… or unix:///path"
        )
    if parts.username or parts.password:
        raise ConfigError(
            f"{where}: credentials do not belong into an address; set ENGINEKIT_API_KEY instead"
        )
    return url.removesuffix("/v1")


def default_url(cls: type[Engine], name: str) -> Setting:
    """Where a server of this kind is when nobody said: its own variable's address, else its usual one.

    Raises ConfigError for an engine that has none.
    """
    variable = cls.profile.url_env
    value = os.environ.get(variable, "") if variable else ""
    if value:
        value = value if "://" in value else f"http://{value}"
        parts = urlsplit(value)
        host = "127.0.0.1" if parts.hostname in ("0.0.0.0", "::", None) else parts.hostname
        host = f"[{host}]" if host and ":" in host else host
        default_port = urlsplit(cls.profile.default_url).port
        port = f":{parts.port or default_port}" if parts.scheme == "http" else ""
        if parts.scheme == "https" and parts.port:
            port = f":{parts.port}"
        return Setting(
            name="base_url",
            value=f"{parts.scheme}://{host}{port}{parts.path}",
            layer="environment",
            where=variable,
        )
    if not cls.profile.default_url:
        raise ConfigError(
            f"engine {name!r} has no default address",
            hint=f"set ENGINEKIT_BASE_URL, or url under [engines.{name}] in enginekit.toml",
        )
    return Setting(
        name="base_url",
        value=cls.profile.default_url,
        layer="default",
        where=f"the default address of {name}",
    )
