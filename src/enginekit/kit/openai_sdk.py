"""The official OpenAI clients, pointed at the engine that the configuration says.

For programs that speak the OpenAI SDK already. Only the address, the key, the budgets and the way
through proxies and TLS are enginekit's: what the SDK sends and reads is its own, so there is no
receipt, a parameter that the engine ignores is lost unseen, and a cut stream looks whole.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from enginekit.drivers._proxy import proxy_for
from enginekit.drivers._target import parse
from enginekit.drivers._tls import context
from enginekit.engine import Target
from enginekit.errors import MissingExtra, NoEngine
from enginekit.kit.client import DEFAULT_RETRIES, Client

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

_Theirs = TypeVar("_Theirs")


def openai_client(client: Client | None = None, **settings: Any) -> OpenAI:
    """An `openai.OpenAI` for the engine in use; finds or starts it if need be.

    Args:
        client: the enginekit client whose engine to use; its `model` is the name to ask for.
            A server that it started stays up as long as the returned client lives.
        settings: as for `enginekit.Client`, when no client is given.

    Raises:
        MissingExtra: the package `openai` is not installed.
        EngineKitError: what `Client.connect` raises. Of several engines the first is taken.
    """
    sdk = _sdk()
    ours = _client(client, settings)
    ours.connect()
    theirs: OpenAI = sdk.OpenAI(http_client=_http(ours, sdk.DefaultHttpxClient), **_arguments(ours))
    return _kept(theirs, ours)


async def async_openai_client(client: Client | None = None, **settings: Any) -> AsyncOpenAI:
    """As `openai_client`, an `openai.AsyncOpenAI`; belongs to the running event loop."""
    sdk = _sdk()
    ours = _client(client, settings)
    await ours.aconnect()
    theirs: AsyncOpenAI = sdk.AsyncOpenAI(
        http_client=_http(ours, sdk.DefaultAsyncHttpxClient), **_arguments(ours)
    )
    return _kept(theirs, ours)


def _client(client: Client | None, settings: dict[str, Any]) -> Client:
    if client is not None and settings:
        raise TypeError("give a client or settings, not both")
    return Client(settings, where="openai_client(...)") if client is None else client


def _sdk() -> Any:
    try:
        return import_module("openai")
    except ImportError as error:
        raise MissingExtra(
            "openai_client needs the package openai, which is not installed",
            hint="pip install 'enginekit[openai]'",
            extra="openai",
        ) from error


def _arguments(client: Client) -> dict[str, Any]:
    headers = dict(_target(client).headers)
    scheme, _, key = headers.pop("authorization", "").partition(" ")
    return {
        "base_url": f"{_web_address(_target(client))}/v1",
        # The SDK insists on a key; a server without one ignores it.
        "api_key": key if scheme == "Bearer" and key else "none",
        "default_headers": headers,
        "max_retries": client.config.value("max_retries", DEFAULT_RETRIES),
    }


def _http(client: Client, base: Any) -> Any:
    """A transport that goes where the drivers would and follows no redirect with the prompt.

    `base` is the SDK's own class for it: which HTTP library that stands on differs by version.
    """
    httpx = import_module(base.__mro__[1].__module__.partition(".")[0])
    asynchronous = issubclass(base, httpx.AsyncClient)
    transport = httpx.AsyncHTTPTransport if asynchronous else httpx.HTTPTransport
    target = _target(client)
    site = parse(target.base_url)
    proxy = proxy_for(site, target.proxy)
    budgets = client.budgets
    return base(
        transport=transport(
            verify=context(target.ca_file, target.client_cert, target.verify) if site.tls else True,
            uds=site.socket_path,
            proxy=None if proxy is None else httpx.Proxy(proxy.url, headers=list(proxy.headers)),
        ),
        timeout=httpx.Timeout(
            max(budgets.first_token, budgets.between_tokens), connect=budgets.connect
        ),
        follow_redirects=False,
        trust_env=False,
    )


def _web_address(target: Target) -> str:
    return "http://localhost" if target.base_url.startswith("unix:") else target.base_url


def _target(client: Client) -> Target:
    if client.engine is None:
        raise NoEngine("no engine is in use")
    return client.engine.target


def _kept(theirs: _Theirs, ours: Client) -> _Theirs:
    """Tie the life of a server that enginekit started to the client that talks to it."""
    vars(theirs)["_enginekit_client"] = ours
    return theirs
