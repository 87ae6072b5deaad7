"""What people call a model, and which entry of the catalog they mean.

`llama3.1`, `qwen3:8b`, `Qwen/Qwen3-8B`, `unsloth/Qwen3-8B-GGUF`, `qwen3:8b-q4_K_M` and
`hf.co/unsloth/Qwen3-8B-GGUF:Q4_K_M` all lead to an entry; the last two name a quantization too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from types import MappingProxyType

from enginekit.catalog import _table
from enginekit.errors import ModelNotFound
from enginekit.facts.model import ModelSpec
from enginekit.sizing.quantization import gguf_label, weight_format

_PREFIXES = ("hf://", "hf.co/", "huggingface.co/", "https://huggingface.co/", "ollama://")
_JOINT = re.compile(r"[-_: ]+")
_LOOSE = re.compile(r"(?<![0-9])-|-(?![0-9])")  # between two digits it tells llama3-18b from 3.1-8b


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A catalog entry, and the quantization that the name asked for, if any."""

    name: str
    quantization: str = ""

    @property
    def spec(self) -> ModelSpec:
        """The entry's facts."""
        return _table.spec(self.name)


@cache
def _index() -> Mapping[str, str]:
    """Every spelling, lower case, to the entry's name; an entry's own name always wins."""
    index: dict[str, str] = {}
    for name, row in _table.rows().items():
        spellings = [row["ollama_tag"], *row["aliases"].split(";")]
        spellings += [row["hf_repo"], row["gguf_repo"], row["mlc_repo"]]
        spellings += [repo.rsplit("/", 1)[-1] for repo in spellings if "/" in repo]
        spellings.append(name.replace("-", ":", 1))
        for spelling in spellings:
            if spelling:
                index.setdefault(spelling.lower(), name)
    index.update({name.lower(): name for name in _table.rows()})
    return MappingProxyType(index)


@cache
def _squeezed_index() -> Mapping[str, str]:
    """Every spelling without its joints to the one entry it means; none that means two."""
    index: dict[str, str] = {}
    for spelling, name in _index().items():
        if index.setdefault(_squeezed(spelling), name) != name:
            index[_squeezed(spelling)] = ""
    return MappingProxyType({key: name for key, name in index.items() if name})


def _squeezed(spelling: str) -> str:
    """`gpt oss_20b`, `gptoss:20b` and `gpt-oss-20b` alike."""
    return _LOOSE.sub("", _JOINT.sub("-", spelling))


def catalog_names() -> tuple[str, ...]:
    """Every entry, in the order of the table."""
    return tuple(_table.rows())


@lru_cache(maxsize=4096)
def find(name: str, *, loosely: bool = True) -> Match | None:
    """The entry that a name means, or None; loosely, dashes and spaces may be missing."""
    wanted = name.strip().lower()
    for prefix in _PREFIXES:
        wanted = wanted.removeprefix(prefix)
    wanted = wanted.removesuffix(":latest").removesuffix("/")
    index = _index()
    found = index.get(wanted)
    if found is not None:
        return Match(name=found)
    loose = _squeezed_index().get(_squeezed(wanted)) if loosely else None
    return _with_quantization(wanted, index) or (Match(name=loose) if loose else None)


def _with_quantization(wanted: str, index: Mapping[str, str]) -> Match | None:
    """`repo:Q4_K_M`, `repo/file-Q4_K_M.gguf`, `qwen3:8b-q4_K_M`, `llama3.1:8b-instruct-q8_0`."""
    parts = wanted.removesuffix(".gguf")
    candidates = []
    for separator in (":", "-", "."):
        stem, _, tail = parts.rpartition(separator)
        other = weight_format(tail)
        quantization = gguf_label(tail) or (other.name if other else "")
        if stem and quantization:
            candidates.append((stem, quantization))
    for stem, quantization in candidates:
        for spelling in (
            stem,
            stem.removesuffix("-instruct").removesuffix("-it").removesuffix("-chat"),
            stem.split("/")[-1],
            "/".join(stem.split("/")[:2]),
        ):
            found = index.get(spelling)
            if found is not None:
                return Match(name=found, quantization=quantization)
    return None


def get(name: str) -> Match:
    """The entry that a name means.

    Raises:
        ModelNotFound: no entry has that name; the message lists the nearest ones.
    """
    found = find(name)
    if found is not None:
        return found
    near = suggestions(name)
    meant = f"; did you mean {', '.join(near)}?" if near else ""
    raise ModelNotFound(
        f"the catalog has no model {name!r}{meant}",
        hint="enginekit models    (lists the catalog; a GGUF path, a folder with config.json or "
        "hf://owner/repo works as well)",
        near=near,
    )


def suggestions(name: str, count: int = 3) -> tuple[str, ...]:
    """The nearest catalog names, best first: other sizes of what was asked before others."""
    wanted = name.strip().lower().rsplit("/", 1)[-1].replace(":", "-")[:200]
    index = _index()
    kind = _kind(wanted)
    kin = [spelling for spelling in index if _kind(spelling) == kind] if kind else []
    found: list[str] = []
    for among in (kin, list(index)):
        for spelling in difflib.get_close_matches(wanted, among, n=4 * count, cutoff=0.55):
            if index[spelling] not in found:
                found.append(index[spelling])
    return tuple(found[:count])


def _kind(spelling: str) -> str:
    """What a name says before its size: `llama3.1` of `llama3.1:13b`."""
    head = re.split(r"[-:](?=[a-z]?[0-9]+(?:\.[0-9]+)?[bm](?:[-:]|$))", spelling, maxsplit=1)
    return _squeezed(head[0]) if len(head) > 1 else ""
