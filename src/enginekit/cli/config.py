"""`enginekit config`: the settings in effect, and where each comes from."""

from __future__ import annotations

import sys

from enginekit import config as configuration
from enginekit import registry
from enginekit.cli import table
from enginekit.cli.output import print_json
from enginekit.errors import describe_choices


def config(*, origin: bool = False, json: bool = False) -> int:
    """Show the settings in effect.

    Parameters
    ----------
    origin
        Say for each value which layer and place it comes from, and list weaker values it hides.
    json
        Print one JSON object.
    """
    loaded = configuration.load()
    rows = list(loaded.rows())
    if json:
        print_json(
            {
                "settings": {
                    row.name: {"value": row.shown, "layer": row.layer, "where": row.where}
                    for row in rows
                },
                "project_file": loaded.project_file,
                "user_file": loaded.user_file,
                "notes": loaded.notes,
            }
        )
        return 0
    shown = {row.name for row in rows}
    idle = [] if not origin else [name for name in configuration.KEYS if name not in shown]
    if not loaded.layers:
        sys.stdout.write("nothing is configured: defaults and discovery decide\n")
    else:
        lines: list[tuple[str, ...]] = []
        for row in rows:
            lines.append((row.name, row.shown, *((row.layer, row.where) if origin else ())))
            if origin:
                lines += [
                    ("", f"({hidden.shown})", f"({hidden.layer})", hidden.where)
                    for hidden in _said(loaded, row.name)
                    if hidden is not row
                ]
        for name in idle:
            for other in _said(loaded, name):
                where = f"{other.where}: for another engine, not in effect"
                lines.append((name, f"({other.shown})", f"({other.layer})", where))
        table.show(("setting", "value", "layer", "from") if origin else ("", ""), lines)
    if origin:
        sys.stderr.write(f"project file: {loaded.project_file or 'none found'}\n")
        sys.stderr.write(
            f"user file:    {loaded.user_file or configuration.user_config_dir() / 'config.toml'}"
            f"{'' if loaded.user_file else ' (does not exist)'}\n"
        )
    for note in (*loaded.notes, *_unknown_engines(loaded)):
        sys.stderr.write(f"note: {note}\n")
    return 0


def _said(loaded: configuration.Config, name: str) -> list[configuration.Setting]:
    """What each layer says of a setting, strongest first."""
    said = (loaded.layers.get(layer, {}).get(name) for layer in configuration.LAYERS)
    return [setting for setting in said if setting is not None]


def _unknown_engines(loaded: configuration.Config) -> list[str]:
    """Settings for an engine that nothing is called: a slip in a variable's or a table's name."""
    known = (*registry.names(), *loaded.custom_engines())
    notes = []
    for row in loaded.rows():
        if not row.name.startswith("engines."):
            continue
        name = row.name.split(".")[1]
        if name not in known:
            near = describe_choices(known, name, 1)
            notes.append(
                f"{row.where} is for an engine {name!r}, which does not exist"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
    return notes
