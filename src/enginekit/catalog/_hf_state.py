"""Which layers of a Hugging Face model attend, recur or mix experts, in all the ways configs say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enginekit.catalog import _layout
from enginekit.catalog._keys import Config
from enginekit.facts.model import Recurrent

Flags = tuple[bool, ...] | None

_ATTENTION = frozenset(
    ("full_attention", "sliding_attention", "chunked_attention", "attention", "hybrid")
) | {"deepseek_sparse_attention"}
_RECURRENT = frozenset(("linear_attention", "mamba", "conv", "mamba2", "recurrent", "hybrid"))
_OTHER = frozenset(("moe", "mlp"))
_ALL_RECURRENT = frozenset(("mamba", "mamba2"))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKinds:
    """One flag per layer; None where the config has no such list."""

    attention: Flags = None
    recurrent: Flags = None
    sliding: Flags = None
    moe: Flags = None
    ffn: Flags = None
    widths: tuple[int, ...] | None = None
    kv_heads: tuple[int, ...] | None = None
    understood: bool = True
    """False if a list names a kind of layer that we do not know."""

    @property
    def stateful(self) -> bool:
        """Whether any layer keeps recurrent state."""
        return self.recurrent is not None and any(self.recurrent)


def layer_kinds(keys: Config, architecture: str, count: int) -> LayerKinds:
    """Read whichever per-layer list the config has."""
    pattern = keys.text("hybrid_override_pattern")
    if pattern:
        return _from_letters(keys, pattern, count)
    if architecture in _ALL_RECURRENT:
        none = (False,) * count
        return LayerKinds(attention=none, recurrent=(True,) * count, ffn=none)
    if architecture == "falcon-h1":
        return LayerKinds(recurrent=(True,) * count)
    if architecture == "deci":
        return _from_blocks(keys, count)
    for key in ("layers_block_type", "layer_types"):
        listed = keys.data.get(key)
        if isinstance(listed, list):
            return _from_words(keys, key, listed, count, architecture)
    kimi = keys.data.get("linear_attn_config")
    if isinstance(kimi, Mapping):
        full = kimi.get("full_attn_layers")
        full = full if isinstance(full, list) else []
        attention = tuple(index + 1 in full for index in range(count))
        return LayerKinds(attention=attention, recurrent=tuple(not flag for flag in attention))
    listed = keys.data.get("attn_type_list")
    if isinstance(listed, list):
        if len(listed) < count:
            keys.fail("attn_type_list", listed, f"{count} layers need {count} values")
        attention = tuple(value == 1 for value in listed[:count])
        return LayerKinds(attention=attention, recurrent=tuple(not flag for flag in attention))
    interval = keys.number("full_attention_interval", limit=_layout.MAX_LAYERS)
    if interval or architecture in ("qwen3next", "qwen35", "qwen35moe"):
        recurrent = _layout.every(count, interval or 4)
        return LayerKinds(recurrent=recurrent, attention=tuple(not flag for flag in recurrent))
    period = keys.number("attn_layer_period", limit=_layout.MAX_LAYERS)
    if period:
        offset = keys.number("attn_layer_offset", limit=_layout.MAX_LAYERS)
        attention = tuple(index % period == offset for index in range(count))
        return LayerKinds(attention=attention, recurrent=tuple(not flag for flag in attention))
    listed = keys.data.get("full_attn_idxs", keys.data.get("attn_layer_indices"))
    if isinstance(listed, list):
        attention = tuple(index in listed for index in range(count))
        return LayerKinds(attention=attention, recurrent=tuple(not flag for flag in attention))
    return LayerKinds()


def _from_letters(keys: Config, pattern: str, count: int) -> LayerKinds:
    """Nemotron-H: `M` Mamba-2, `*` attention, `-` feed-forward, `E` experts."""
    if len(pattern) < count or set(pattern) - set("M*-E|"):
        keys.fail("hybrid_override_pattern", pattern, f"{count} letters of M * - E were expected")
    letters = pattern.replace("|", "")[:count]
    if len(letters) < count:
        keys.fail("hybrid_override_pattern", pattern, f"{count} letters of M * - E were expected")
    return LayerKinds(
        attention=tuple(letter == "*" for letter in letters),
        recurrent=tuple(letter == "M" for letter in letters),
        moe=tuple(letter == "E" for letter in letters),
        ffn=tuple(letter == "-" for letter in letters),
    )


def _from_words(
    keys: Config, key: str, listed: list[Any], count: int, architecture: str
) -> LayerKinds:
    if len(listed) < count:
        keys.fail(key, listed, f"{count} layers need {count} values")
    words = [str(word) for word in listed[:count]]
    understood = all(word in _ATTENTION | _RECURRENT | _OTHER for word in words)
    # A kind nobody has heard of may keep a cache: better to count one too many.
    attention = tuple(word in _ATTENTION or word not in _RECURRENT | _OTHER for word in words)
    recurrent = tuple(word in _RECURRENT for word in words)
    sliding = tuple(word in ("sliding_attention", "chunked_attention") for word in words)
    one_part_blocks = any(word in _OTHER for word in words) and architecture == "nemotron_h"
    return LayerKinds(
        attention=None if all(attention) else attention,
        recurrent=recurrent if any(recurrent) else None,
        sliding=sliding,
        moe=tuple(word == "moe" for word in words) if one_part_blocks else None,
        ffn=tuple(word == "mlp" for word in words) if one_part_blocks else None,
        understood=understood,
    )


def _from_blocks(keys: Config, count: int) -> LayerKinds:
    """Nemotron NAS: each block says whether it attends, with how many heads per group, how wide."""
    blocks = keys.data.get("block_configs")
    heads = keys.number("num_attention_heads", limit=1 << 16)
    if not isinstance(blocks, list) or len(blocks) < count:
        return LayerKinds(understood=False)
    hidden = keys.number("hidden_size", limit=1 << 20)
    kv: list[int] = []
    widths: list[int] = []
    for block in blocks[:count]:
        attention = block.get("attention") if isinstance(block, Mapping) else None
        feed = block.get("ffn") if isinstance(block, Mapping) else None
        attention = attention if isinstance(attention, Mapping) else {}
        feed = feed if isinstance(feed, Mapping) else {}
        group = attention.get("n_heads_in_group")
        skip = attention.get("no_op") or attention.get("replace_with_linear")
        kv.append(0 if skip or not isinstance(group, int) or group < 1 else heads // group)
        widths.append(_block_width(feed, hidden))
    return LayerKinds(
        attention=tuple(each > 0 for each in kv), kv_heads=tuple(kv), widths=tuple(widths)
    )


def _block_width(feed: Mapping[str, Any], hidden: int) -> int:
    """As DeciLM's code rounds it: two thirds of the multiple, up to the next 256."""
    if feed.get("no_op"):
        return 0
    if feed.get("replace_with_linear"):
        return hidden // 3  # one hidden x hidden matrix, counted as three thirds
    stated, factor = feed.get("intermediate_size"), feed.get("ffn_mult")
    if isinstance(stated, int) and 0 < stated < 1 << 24:
        return stated
    if not isinstance(factor, int | float) or not 0 < factor < 1 << 10:
        return 0
    return -(-int(2 * factor * hidden / 3) // 256) * 256


def recurrent_state(keys: Config, architecture: str, hidden: int) -> Recurrent | None:
    """State of one recurrent layer, by family."""
    if keys.number("linear_num_value_heads", limit=1 << 16):
        key_dim = keys.number("linear_key_head_dim", limit=1 << 14, default=128)
        heads = keys.number("linear_num_value_heads", limit=1 << 16)
        value_dim = keys.number("linear_value_head_dim", limit=1 << 14, default=key_dim)
        return _layout.ssm(
            "gdn",
            inner=heads * value_dim,
            state=key_dim,
            groups=keys.number("linear_num_key_heads", limit=1 << 16, default=heads),
            conv=keys.number("linear_conv_kernel_dim", limit=1 << 10, default=4),
            heads=heads,
        )
    kimi = keys.data.get("linear_attn_config")
    if isinstance(kimi, Mapping):
        inner = Config(kimi, keys.source)
        return _layout.kda(
            heads=inner.number("num_heads", limit=1 << 16),
            head_dim=inner.number("head_dim", limit=1 << 14, default=128),
            conv=inner.number("short_conv_kernel_size", limit=1 << 10, default=4),
        )
    if architecture.startswith("lfm2"):
        cache = keys.number("conv_L_cache", limit=1 << 10, default=3)
        return _layout.shortconv(hidden=hidden, cache=cache)
    if architecture == "minimax":
        heads = keys.number("num_attention_heads", limit=1 << 16)
        head_dim = keys.number("head_dim", limit=1 << 14) or (hidden // heads if heads else 0)
        return _layout.lightning(heads=heads, head_dim=head_dim)
    return _mamba(keys, architecture, hidden)


def _mamba(keys: Config, architecture: str, hidden: int) -> Recurrent:
    conv = keys.number("conv_kernel", "mamba_d_conv", "d_conv", limit=1 << 10, default=4)
    state = keys.number("ssm_state_size", "mamba_d_state", "state_size", limit=1 << 16, default=16)
    heads = keys.number("mamba_num_heads", "mamba_n_heads", "num_heads", limit=1 << 16)
    head_dim = keys.number("mamba_head_dim", "mamba_d_head", "head_dim", limit=1 << 14)
    if architecture in ("mamba", "jamba"):
        expand = keys.number("expand", "mamba_expand", limit=64, default=2)
        inner = keys.number("intermediate_size", limit=1 << 22) if architecture == "mamba" else 0
        return _layout.ssm(
            "mamba1",
            inner=inner or expand * hidden,
            state=state,
            groups=0,
            conv=conv,
            heads=_step_rank(keys, hidden),
        )
    expand = keys.number("mamba_expand", "expand", limit=64, default=2)
    inner = keys.number("mamba_d_ssm", limit=1 << 22) or heads * head_dim or expand * hidden
    return _layout.ssm(
        "mamba2",
        inner=inner,
        state=state,
        groups=keys.number("n_groups", "mamba_n_groups", limit=1 << 16, default=1),
        conv=conv,
        heads=heads,
    )


def _step_rank(keys: Config, hidden: int) -> int:
    """Mamba's rank of the step; "auto" is a sixteenth of the width."""
    for name in ("time_step_rank", "mamba_dt_rank"):
        value = keys.data.get(name)
        if value not in (None, "auto"):
            return keys.checked(name, value, 1 << 20)
    return -(-hidden // 16)
