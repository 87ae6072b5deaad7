"""Public names that are resolved on first use, where their package may not be installed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from enginekit.errors import MissingExtra


def resolved(
    package: str, public: Mapping[str, str], name: str, *, needs: str, foreign: tuple[str, ...]
) -> Any:
    """The attribute `name` of a package, from the module that `public` names.

    Args:
        package: as `enginekit.langchain`; its last part is also the extra.
        needs: the distribution that the extra brings.
        foreign: top-level modules that come with it.

    Raises AttributeError for a name that is not public, and MissingExtra where one of the foreign
    modules is not installed.
    """
    module = public.get(name)
    if module is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in foreign:
            extra = package.rpartition(".")[2].replace("_", "-")
            raise MissingExtra(
                f"{package}.{name} needs {needs}, which is not installed",
                hint=f"pip install 'enginekit[{extra}]'",
                extra=extra,
            ) from error
        raise
