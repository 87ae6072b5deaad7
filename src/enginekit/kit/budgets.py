"""The budgets of all waits, from the settings."""

from __future__ import annotations

from enginekit.config import Config
from enginekit.engine import Budgets
from enginekit.errors import ConfigError


def budgets_of(config: Config) -> Budgets:
    """How long each wait may take. Raises ConfigError for a timeout that is none."""
    try:
        return Budgets.of(config.value("timeout"))
    except ValueError as error:
        setting = config.find("timeout")
        place = setting.where if setting else "timeout"
        raise ConfigError(f"{place}: {error}") from error
