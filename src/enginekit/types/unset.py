"""What was not given."""

from __future__ import annotations

import enum
from typing import Final, Literal, TypeAlias, TypeVar

_T = TypeVar("_T")


class _Unset(enum.Enum):
    UNSET = "UNSET"

    def __bool__(self) -> Literal[False]:
        return False

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = _Unset.UNSET
"""Not given. Distinct from `None`, zero and the empty string."""

Maybe: TypeAlias = _T | Literal[_Unset.UNSET]
