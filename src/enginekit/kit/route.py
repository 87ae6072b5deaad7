"""From settings to one engine that can be talked to: address, key, model, and a child if needed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from enginekit import registry
from enginekit.config import Config, Setting
from enginekit.engine import Blocking, Engine, Operation, Target
from enginekit.errors import (
    ConfigError,
    ContextOverflow,
    NoEngine,
    Unreachable,
)
from enginekit.facts.engine import EngineProfile, ServerFacts
from enginekit.kit import embedded
from enginekit.kit.address import bearer, default_url, target_for
from enginekit.kit.discover import discover, identify


@dataclass(slots=True, kw_only=True)
class Route:
    """One engine, ready to be talked to.

    Attributes:
        model: the name to use when a request names none.
        lease: the hold on a server that enginekit itself started, or None.
        notes: for the receipt: where the model came from and so on.
        chosen: one sentence of why this engine, for people.
        address: the setting that named the address; None for a server of our own.
    """

    engine: Engine
    model: str
    lease: embedded.Lease | None = None
    notes: tuple[str, ...] = ()
    chosen: str = ""
    address: Setting | None = None
    probed: bool = False
    others: dict[str, Route] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        """False once a server that we started has died."""
        return self.lease is None or self.lease.alive()


def resolve(
    config: Config,
    name: str | None,
    *,
    model: str | None = None,
    progress: embedded.Progress | None = None,
    budget: float = 600.0,
    embeds: bool = False,
) -> Operation[Route]:
    """Find or start the engine `name`; None means whatever is configured or running.

    With `embeds` a server that has to be started is one that embeds and does not chat.

    Raises NoEngine with everything that was tried, in order.
    """
    if name is not None:
        return (yield from _named(config, name, model, progress, budget, "configured", embeds))
    url = config.find("base_url")
    if url is not None:
        found = yield from identify(target_for(config, "", url), deadline=5.0)
        if found.engine is None:
            raise NoEngine(
                f"no engine recognised at {url.value} (from {url.where}): {found.why}",
                hint=_name_it() if found.answered else _other_address(url),
                tried=(f"{url.value} ({url.where})",),
            )
        return (
            yield from _named(
                config,
                found.engine.profile.name,
                model,
                progress,
                budget,
                f"found at {url.value}",
                address=url,
            )
        )
    return (yield from _whatever_runs(config, model, progress, budget, embeds))


def _name_it() -> str:
    names = ", ".join(name for name in registry.names() if name not in registry.LAUNCHED)
    return f"name the engine as well: ENGINEKIT_ENGINE=NAME, one of {names}"


def _other_address(url: Setting) -> str:
    return f"start the server there, or correct {url.where}; `enginekit engines` shows what runs"


def _whatever_runs(
    config: Config,
    model: str | None,
    progress: embedded.Progress | None,
    budget: float,
    embeds: bool,
) -> Operation[Route]:
    wanted = model or config.value("model")
    tried: list[str] = []
    if wanted is None or not embedded.is_model_file(wanted):
        for found in (yield from discover()):
            if found.engine is None:
                tried.append(f"{found.url} ({', '.join(found.asked)}): {found.why}")
                continue
            names = _served(found.facts)
            if wanted is not None and found.engine.profile.model_id != "any":
                if wanted not in names and f"{wanted}:latest" not in names:
                    tried.append(
                        f"{found.url}: {found.engine.name} runs there but has no model {wanted!r}"
                    )
                    continue
            elif wanted is not None and names and wanted not in names:
                tried.append(f"{found.url}: {found.engine.name} runs there but serves {names[0]!r}")
                continue
            elif wanted is None and not names:
                tried.append(f"{found.url}: {found.engine.name} runs there but has no model")
                continue
            address = Setting(
                name="base_url", value=found.url, layer="discovery", where="what runs here"
            )
            return (
                yield from _named(
                    config,
                    found.engine.profile.name,
                    model,
                    progress,
                    budget,
                    f"found running at {found.url}",
                    address=address,
                )
            )
    missing = embedded.unavailable()
    if missing is None:
        chosen = "nothing was configured and nothing suitable was running"
        return (yield from _named(config, "embedded", model, progress, budget, chosen, embeds))
    tried.append(f"embedded: {missing.message}")
    raise NoEngine(
        "no engine is configured and none could be used. Tried, in order:\n"
        + "\n".join(f"  {number}. {line}" for number, line in enumerate(tried, 1))
        + "\nSettings: "
        + (
            "; ".join(f"{s.name}={s.shown} from {s.where}" for s in config.rows())
            or "none given (no ENGINEKIT_* variable, no enginekit.toml)"
        ),
        hint=missing.hint or "name a running engine: ENGINEKIT_ENGINE=… ENGINEKIT_BASE_URL=…",
        tried=tuple(tried),
    ) from missing


def _named(
    config: Config,
    name: str,
    model: str | None,
    progress: embedded.Progress | None,
    budget: float,
    chosen: str,
    embeds: bool = False,
    address: Setting | None = None,
) -> Operation[Route]:
    table = {key: setting.value for key, setting in config.engine_table(name).items()}
    wanted = model
    if wanted is None:
        setting = config.for_engine("model", name)
        wanted = None if setting is None else str(setting.value)
    cls = registry.engine_class(table.get("like", name))
    options = {"model": wanted, **table.get("options", {})} if wanted else table.get("options", {})
    if table.get("like", name) in registry.LAUNCHED:
        lease = yield Blocking(
            function=_starter(config, wanted or embedded.DEFAULT_MODEL, progress, budget, embeds)
        )
        template = config.value("chat_template")
        if template:
            options = {**options, "substituted_template": str(template)}
        engine = cls(
            Target(base_url=lease.base_url, headers=bearer(lease.api_key), proxy=""),
            options=options,
            name=name,
        )
        return Route(
            engine=engine,
            model=wanted or embedded.DEFAULT_MODEL,
            lease=lease,
            notes=lease.notes,
            chosen=chosen,
        )
    url = address or config.for_engine("base_url", name) or default_url(cls, name)
    engine = cls(target_for(config, name, url), options=options, name=name)
    route = Route(engine=engine, model=wanted or "", chosen=chosen, address=url)
    if not wanted:
        try:
            route.model = yield from _only_model(engine)
        except Unreachable as error:
            raise explained(route, error) from error
    return route


def _starter(
    config: Config, model: str, progress: embedded.Progress | None, budget: float, embeds: bool
) -> Callable[[], embedded.Lease]:
    def start() -> embedded.Lease:
        return embedded.start(config, model, progress=progress, budget=budget, embeds=embeds)

    return start


def start_command(profile: EngineProfile, url: str, model: str | None) -> str:
    """The command that starts such a server on the port of `url`; empty where there is none."""
    start = profile.start_command.format(model=model or "MODEL")
    asked, usual = urlsplit(url), urlsplit(profile.default_url)
    if not start or asked.port is None or asked.port == usual.port:
        return start
    moved = re.sub(rf"(?<= ){usual.port}\b", str(asked.port), start)
    if moved == start and profile.url_env:
        return f"{profile.url_env}={asked.hostname}:{asked.port} {start}"
    return moved


def explained(route: Route, error: Unreachable) -> Unreachable:
    """The same error with where the address came from and the command that starts such a server."""
    if route.address is None or error.hint:
        return error
    engine = route.engine
    start = start_command(engine.profile, engine.target.base_url, route.model)
    return Unreachable(
        f"{engine.name} does not answer at {engine.target.base_url} "
        f"(from {route.address.where}): {error.message}",
        hint=f"start it: {start}" if start else None,
        engine=engine.name,
        url=engine.target.base_url,
    )


def roomier(error: ContextOverflow) -> ContextOverflow:
    """The same error with the setting that gives a server of our own a larger window."""
    needed = f"={error.requested}" if error.requested else "=TOKENS"
    return ContextOverflow(
        error.message,
        hint=f"a shorter prompt, or a larger window: ENGINEKIT_CONTEXT{needed} (context=)",
        engine=error.engine,
        url=error.url,
        status=error.status,
        body=error.body,
        limit=error.limit,
        requested=error.requested,
    )


def _served(facts: ServerFacts | None) -> list[str]:
    if facts is None:
        return []
    return [name for card in facts.models for name in (card.id, *card.aliases)]


def _only_model(engine: Engine) -> Operation[str]:
    """The model to use when none was named: the one that is loaded, or the only one there is."""
    cards = yield from engine.models()
    loaded = [card.id for card in cards if card.loaded]
    if len(loaded) == 1:
        return loaded[0]
    fixed = bool(cards) and cards[0].loaded is None  # else it loads the one that is named
    if len(cards) == 1 or (fixed and engine.profile.model_id in ("any", "served")):
        return cards[0].id
    if not cards:
        return ""
    listed = ", ".join(card.id for card in cards[:5])
    raise ConfigError(
        f"no model is named and {engine.name} at {engine.target.base_url} has {len(cards)}: "
        f"{listed}{', …' if len(cards) > 5 else ''}",
        hint=f"ENGINEKIT_MODEL={cards[0].id}",
    )
