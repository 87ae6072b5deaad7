"""`enginekit engines`: what is running here, and what each engine can do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from enginekit import config as configuration
from enginekit import registry
from enginekit.cli import table
from enginekit.cli.output import print_json
from enginekit.errors import EngineKitError
from enginekit.facts.engine import EngineProfile
from enginekit.kit import embedded
from enginekit.kit.address import target_for
from enginekit.kit.client import Client
from enginekit.kit.discover import Found, discover, identify

if TYPE_CHECKING:
    from enginekit.launch.embedded import Running


def engines(name: str | None = None, /, *, json: bool = False) -> int:
    """Show which engines run here; with a name, what that engine can do.

    Parameters
    ----------
    name
        An engine, to see its capabilities and how we know.
    json
        Print one JSON object.
    """
    if name is not None:
        profile = registry.engine_class(name).profile
        _capabilities_json(profile) if json else _capabilities(name, profile)
        return 0
    running = embedded.running()
    client = Client()
    found = [*client.run(discover()), *_configured(client)]
    if json:
        print_json({"embedded": [_child(child) for child in running], "found": _rows(found)})
        return 0
    _overview(running, found)
    return 0


def _configured(client: Client) -> list[Found]:
    """The addresses that settings name, beside the default ones."""
    settings = client.config
    places = {
        name: setting
        for name in (*registry.names(), *settings.custom_engines())
        if (setting := settings.for_engine("base_url", name)) is not None
    }
    found: dict[str, Found] = {}
    for name, setting in places.items():
        if setting.value not in found:
            try:
                target = target_for(settings, name, setting)
            except EngineKitError as error:
                found[setting.value] = Found(url=setting.value, asked=(name,), why=str(error))
                continue
            found[setting.value] = client.run(identify(target))
    return list(found.values())


def _overview(running: list[Running], found: list[Found]) -> None:
    rows = [
        (
            f"embedded {child.version}",
            f"running, pid {child.pid}, {child.slots} slots",
            child.model,
            f"{child.context} tokens",
            child.url,
        )
        for child in running
    ]
    if not running:
        missing = embedded.unavailable()
        state = "ready to start" if missing is None else "not installed"
        rows.append(("embedded", state, embedded.DEFAULT_MODEL, "", ""))
    silent = []
    for look in found:
        if look.engine is None:
            silent.append(f"{look.url}  {', '.join(look.asked)}")
            continue
        facts = look.facts
        models = [card.id for card in facts.models] if facts else []
        shown = ", ".join(models[:3]) + (f" and {len(models) - 3} more" if len(models) > 3 else "")
        rows.append(
            (
                f"{look.engine.name} {facts.version or '' if facts else ''}".strip(),
                "running" if facts else f"running, but: {look.why}",
                shown,
                f"{facts.context_window} tokens" if facts and facts.context_window else "",
                look.url,
            )
        )
    table.show(("engine", "state", "model", "context", "address"), rows)
    for child in running:
        sys.stdout.write(f"\nembedded, pid {child.pid}, flags: {' '.join(child.flags)}\n")
    if silent:
        sys.stderr.write("\nnothing answers at\n" + "".join(f"  {place}\n" for place in silent))
    loaded = configuration.load()
    chosen = loaded.find("engine")
    if chosen is not None:
        sys.stderr.write(f"configured: {chosen.value} (from {chosen.where})\n")


def _rows(found: list[Found]) -> list[dict[str, Any]]:
    return [
        {
            "url": look.url,
            "engine": look.engine.name if look.engine else None,
            "version": look.facts.version if look.facts else None,
            "models": [card.id for card in look.facts.models] if look.facts else [],
            "context_window": look.facts.context_window if look.facts else None,
            "context_source": look.facts.context_source if look.facts else None,
            "slots": look.facts.slots if look.facts else None,
            "verified": look.facts.verified if look.facts else None,
            "why": look.why or None,
        }
        for look in found
    ]


def _child(child: Running) -> dict[str, Any]:
    return {
        "pid": child.pid,
        "version": child.version,
        "model": child.model,
        "context": child.context,
        "slots": child.slots,
        "url": child.url,
        "owners": child.owners,
        "flags": child.flags,
    }


def _capabilities(name: str, profile: EngineProfile) -> None:
    sys.stdout.write(f"{profile.title} ({name})\n")
    sys.stdout.write(f"wire: {profile.wire}\n")
    if profile.default_url:
        sys.stdout.write(f"default address: {profile.default_url}\n")
    if profile.start_command:
        sys.stdout.write(f"start it: {profile.start_command.format(model='MODEL')}\n")
    if profile.tested:
        sys.stdout.write(f"versions tested: {', '.join(profile.tested)}\n")
    else:
        sys.stdout.write("versions tested: none; documented, not run\n")
        sys.stdout.write(f"read: {'; '.join(profile.sources)}\n")
    if profile.retired:
        sys.stdout.write(f"note: {profile.retired}\n")
    sys.stdout.write("\n")
    table.show(
        ("feature", "support", "evidence", "note"),
        [
            (feature, fact.support, fact.evidence, fact.note)
            for feature, fact in profile.capabilities.items()
        ],
    )


def _capabilities_json(profile: EngineProfile) -> None:
    print_json(
        {
            "name": profile.name,
            "title": profile.title,
            "wire": profile.wire,
            "default_url": profile.default_url or None,
            "tested": profile.tested,
            "sources": profile.sources,
            "capabilities": {
                feature: {"support": c.support, "evidence": c.evidence, "note": c.note}
                for feature, c in profile.capabilities.items()
            },
        }
    )
