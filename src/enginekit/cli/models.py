"""`enginekit models`: the names that the catalog knows."""

from __future__ import annotations

import sys

from enginekit import catalog
from enginekit.cli import table
from enginekit.cli.output import print_json
from enginekit.facts.model import Capabilities, ModelSpec


def models(word: str = "", /, *, json: bool = False) -> int:
    """Show the models that can be named without a file or a repository.

    Parameters
    ----------
    word
        Only those with this in one of their names.
    json
        Print one JSON object.
    """
    wanted = word.strip().lower()
    found = [spec for spec in map(catalog.describe, catalog.catalog_names()) if _has(spec, wanted)]
    if json:
        print_json({"models": [_row(spec) for spec in found]})
        return 0
    if not found:
        near = ", ".join(catalog.suggestions(word))
        sys.stderr.write(f"no model is called {word!r}" + (f"; near: {near}\n" if near else "\n"))
        return 1
    table.show(
        ("name", "parameters", "context", "can", "license", "on Ollama"),
        [
            (
                spec.name,
                _parameters(spec),
                str(spec.context_length),
                " ".join(_can(spec.capabilities)),
                spec.license,
                spec.names.ollama,
            )
            for spec in found
        ],
        right=("parameters", "context"),
        optional=("on Ollama", "license", "can"),
    )
    sys.stderr.write(
        "\nwhat one needs: enginekit plan NAME; any GGUF file or hf:// name works too\n"
    )
    return 0


def _has(spec: ModelSpec, wanted: str) -> bool:
    names = (spec.name, spec.names.ollama, spec.names.hf, spec.names.gguf)
    return any(wanted in name.lower() for name in names)


def _parameters(spec: ModelSpec) -> str:
    total, active = spec.params_total / 1e9, spec.params_active / 1e9
    return f"{total:.3g}B" if active >= total else f"{total:.3g}B ({active:.2g}B active)"


def _can(able: Capabilities) -> list[str]:
    words = ("tools", "vision", "audio", "thinking", "embedding", "rerank")
    return [word for word in words if getattr(able, word)]


def _row(spec: ModelSpec) -> dict[str, object]:
    return {
        "name": spec.name,
        "ollama": spec.names.ollama or None,
        "repository": spec.names.hf or None,
        "gguf_repository": spec.names.gguf or None,
        "parameters": spec.params_total,
        "active_parameters": spec.params_active,
        "context": spec.context_length,
        "can": _can(spec.capabilities),
        "license": spec.license or None,
    }
