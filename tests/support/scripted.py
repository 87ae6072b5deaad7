"""Models whose answers we decide, for real engines: GGUF for llama.cpp and Ollama, a Hugging Face
folder for vLLM and Ray Serve, the same tokens in both, about a megabyte.

A Llama of one layer whose attention and feed-forward outputs are zero passes each token's embedding
straight to the output matrix, and that matrix gives each token one successor. So the last token of
the prompt decides the whole reply, and the chat template chooses that token by what the last user
message holds. Every reply is a chain of tokens; a token is in one chain only, so texts are cut at
places that make their pieces unique.

Replies, by what the last user message holds (see `REPLIES` and `CALLS`): a greeting with its "é"
over two tokens (anything else, also after a tool's answer), MUSE thinks first, LONG never ends,
SAME repeats one word without end, PERSON and "joke" are JSON, CALL is one tool call, CALLS two;
further ones answer the questions of the langchain-tests suite and of `examples/`. A call is written in `<tool_call>`
tags when the request has tools, and as bare JSON when the system message asks for
`{"name": <name of the function>, …}`, which is how enginekit emulates a forced call; Thanks is
answered as such a request asks for an answer without one. A server that
forces calls itself leaves no room for tags: to each call's mark belong a second and a third best
successor, which begin a JSON list of calls (vLLM's form when some call is required) and the bare
arguments (its form when one function is named), and a fourth, which begins TGI's own object around a
call; what greets begins TGI's word for no call where no greeting is allowed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

WIDTH = 128
HEADS = 4
CONTEXT = 16384
FIRST, SECOND, THIRD, FOURTH = 3.4, 2.4, 1.9, 1.45
"""How strongly a token calls its first, second, third and fourth successor; noise stays below 1.2."""
END = "<|eot_id|>"
SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", END)
USER = ("<tool_call>", "<think>", "</think>")
GREETING = "Hello there! A café is near."
THOUGHT = "Greet them back."
WORDS = " one two three four five six seven eight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One scripted answer.

    Attributes:
        when: Jinja expression over `last` (text of the last user message, "" if the last message
            is not the user's), `tools`, `system` and `bare`.
        text: pieces; str is cut freely, bytes are one token each, a name of `USER` stays whole.
        then: end the reply, go on with the greeting, or start over.
    """

    name: str
    when: str
    text: tuple[str | bytes, ...]
    then: Literal["end", "greeting", "again"] = "end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Scripted tool calls.

    Attributes:
        when: Jinja expression over `last`, `system`, `bare`, and `first`, the first tool's name.
    """

    name: str
    when: str
    calls: tuple[tuple[str, dict[str, Any]], ...]


REPLIES: tuple[Reply, ...] = (
    Reply(
        name="muse",
        when="'MUSE' in last",
        text=("<think>", f"\n{THOUGHT}", "</think>", "\n\n"),
        then="greeting",
    ),
    Reply(name="long", when="'LONG' in last", text=(WORDS,), then="again"),
    Reply(name="same", when="'SAME' in last", text=(" again",), then="again"),
    Reply(name="person", when="'PERSON' in last", text=('{"name": "Ann", "age": 31}',)),
    Reply(
        name="joke",
        when="'joke' in last and not bare and not tools",
        text=(
            '{"setup": "Why did the cat sit on the laptop?", "punchline": "To watch the mouse."}',
        ),
    ),
    Reply(
        name="invoice",
        when="'INVOICE' in last",
        text=(
            '{"number": "2026-0417", "seller": "Harbour Supplies Ltd", "lines": ['
            '{"quantity": 2, "item": "mooring rope, 20 m", "amount": 91.0}, '
            '{"quantity": 1, "item": "anchor, galvanised, 12 kg", "amount": 119.0}], '
            '"total": 210.0}',
        ),
    ),
)

LATER: tuple[Reply, ...] = (
    Reply(
        name="answer",
        when="'To answer without one' in system and 'Thanks' in last",
        text=('{"answer": "My pleasure', b" \xe2", b"\x86\x92", ' come again."}'),
    ),
)
"""Replies whose tokens come after all others: new ones move no token, and each keeps its noise."""

_JOKE = {"setup": "What do cats read?", "punchline": "The mewspaper."}

CALLS: tuple[Call, ...] = (
    Call(
        name="calls",
        when="'CALLS' in last",
        calls=(("get_weather", {"city": "Oslo"}), ("add", {"a": 2, "b": 3})),
    ),
    Call(name="call", when="'CALL' in last", calls=(("get_weather", {"city": "Rome"}),)),
    Call(
        name="trip",
        when="'my train' in last",
        calls=(("get_weather", {"city": "Oslo"}), ("next_train", {"destination": "Oslo"})),
    ),
    Call(
        name="noargs",
        when="'magic_function_no_args' in last",
        calls=(("magic_function_no_args", {}),),
    ),
    Call(
        name="pirate",
        when="'Pirate' in last",
        calls=(("greeting_generator", {"answer_style": "pirate"}),),
    ),
    Call(
        name="chinese",
        when="'你好' in last",
        calls=(("unicode_customer", {"customer_name": "你好啊集团", "description": "tech"}),),
    ),
    Call(
        name="japanese",
        when="'こんにちは' in last",
        calls=(("unicode_customer", {"customer_name": "こんにちは株式会社", "description": "jp"}),),
    ),
    Call(
        name="adder",
        when="'3 + 4' in last",
        calls=(("my_adder_tool", {"a": 3, "b": 4}),),
    ),
    Call(
        name="jokedict",
        when="'JokeDict' in (system if bare else first)",
        calls=(("JokeDict", _JOKE),),
    ),
    Call(
        name="jokecall",
        when="'\"Joke\"' in system if bare else first == 'Joke'",
        calls=(("Joke", _JOKE),),
    ),
    Call(
        name="francisco",
        when="'San Francisco' in last or (bare and 'magic_function' not in system + last)",
        calls=(("get_weather", {"location": "San Francisco, CA"}),),
    ),
    Call(
        name="magic",
        when="'magic_function' in last or bare or 'Hello!' in last",
        calls=(("magic_function", {"input": 3}),),
    ),
)


@dataclass(frozen=True, slots=True)
class Script:
    """A vocabulary and who follows whom.

    Attributes:
        others: less likely successors, which show only where a grammar rules out the first.
    """

    vocabulary: tuple[str, ...]
    kinds: tuple[int, ...]
    successors: dict[int, int]
    others: tuple[tuple[int, int, float], ...]
    template: str


def bytes_to_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {
        byte: chr(256 + index) for index, byte in enumerate(rest)
    }


_LETTERS = bytes_to_letters()
_CONTROL, _USER, _NORMAL = 3, 4, 1


def letters(text: str | bytes) -> str:
    """A text as GPT-2 writes its bytes."""
    raw = text.encode() if isinstance(text, str) else text
    return "".join(_LETTERS[byte] for byte in raw)


class _Vocabulary:
    def __init__(self, marks: Sequence[str]) -> None:
        self.words: list[str] = []
        self.kinds: list[int] = []
        self.index: dict[str, int] = {}
        for word in (*SPECIAL, *marks):
            self.add(word, _CONTROL)
        for word in USER:
            self.add(word, _USER)
        for byte in range(256):
            self.add(_LETTERS[byte], _NORMAL)
        self.add("he", _NORMAL)  # a merge needs its result
        self.used: set[str] = {_LETTERS[10], "he"}

    def add(self, word: str, kind: int) -> int:
        if word not in self.index:
            self.index[word] = len(self.words)
            self.words.append(word)
            self.kinds.append(kind)
        return self.index[word]

    def take(self, word: str) -> int:
        """A word for one chain; nobody else gets it."""
        assert word not in self.used, word
        self.used.add(word)
        return self.add(word, _NORMAL)

    def cut(self, text: str) -> list[int]:
        """Words that make up `text`, none used before; at spaces where that will do."""
        pieces: list[str] = []
        start = 0
        while start < len(text):
            space = text.find(" ", start + 1)
            end = space if space > 0 else len(text)
            while letters(text[start:end]) in self.used and end < len(text):
                end += 1
            piece = text[start:end]
            while letters(piece) in self.used or piece in pieces:
                piece = pieces.pop() + piece
            pieces.append(piece)
            start = end
        return [self.take(letters(piece)) for piece in pieces]


def script(
    replies: Sequence[Reply] = REPLIES,
    calls: Sequence[Call] = CALLS,
    later: Sequence[Reply] = LATER,
) -> Script:
    """Lay out the chains."""
    marks = [f"<|{reply.name}|>" for reply in replies]
    marks += [f"<|{call.name}{form}|>" for call in calls for form in ("", "-bare")]
    words = _Vocabulary(marks)
    follow: dict[int, int] = {}
    end = words.index[END]

    def chain(start: int, tokens: Sequence[int], last: int) -> None:
        for before, after in zip((start, *tokens), (*tokens, last), strict=True):
            assert before not in follow, words.words[before]
            follow[before] = after

    head, tail = GREETING.split("é")
    greeting = [*words.cut(head), *map(words.take, map(letters, (b"\xc3", b"\xa9")))]
    greeting += words.cut(tail)
    chain(words.index[_LETTERS[10]], greeting, end)

    def lay(reply: Reply) -> None:
        tokens: list[int] = []
        for part in reply.text:
            if isinstance(part, bytes):
                tokens.append(words.take(letters(part)))
            elif part in USER:
                words.used.add(part)
                tokens.append(words.index[part])
            else:
                tokens += words.cut(part)
        last = {"end": end, "greeting": greeting[0], "again": tokens[0]}[reply.then]
        chain(words.add(f"<|{reply.name}|>", _CONTROL), tokens, last)

    for reply in replies:
        lay(reply)
    for call in calls:
        rows = [
            json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
            for name, arguments in call.calls
        ]
        # No token reaches over the end of a call: a server that allows one call stops there.
        tagged = [word for row in rows for word in words.cut(f"<tool_call>\n{row}\n</tool_call>")]
        chain(words.index[f"<|{call.name}|>"], tagged, end)
        chain(words.index[f"<|{call.name}-bare|>"], words.cut(rows[0]), end)
    others = []

    def other(before: int, form: Any, weight: float) -> None:
        first, *rest = words.cut(json.dumps(form, ensure_ascii=False))
        others.append((before, first, weight))
        chain(first, rest, end)

    for call in calls:
        mark = words.index[f"<|{call.name}|>"]
        name, arguments = call.calls[0]
        other(mark, [{"name": name, "parameters": given} for name, given in call.calls], SECOND)
        wrapped = {"function": {"_name": name, **arguments}}
        # TGI's grammar takes `{}` as well, which is no call there: its own form must come before.
        third, fourth = (arguments, wrapped) if arguments else (wrapped, arguments)
        other(mark, third, THIRD)
        other(mark, fourth, FOURTH)
    other(words.index[_LETTERS[10]], {"function": {"_name": "no_tool"}}, FOURTH)
    for reply in later:
        lay(reply)
    template = _template([*replies, *later], calls)
    return Script(tuple(words.words), tuple(words.kinds), follow, tuple(others), template)


_HEAD = r"""{{ bos_token }}{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}{% set bare = 'name of the function' in system %}{% if tools %}<|start_header_id|>system<|end_header_id|>

Tools:{% for t in tools %}
{{ t | tojson }}{% endfor %}
Call one with <tool_call>{"name": ..., "arguments": ...}</tool_call><|eot_id|>{% endif %}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>

{% if m.get('reasoning_content') %}<think>
{{ m['reasoning_content'] }}
</think>

{% endif %}{% if m.get('content') %}{{ m['content'] }}{% endif %}{% if m.get('tool_calls') %}{% for c in m['tool_calls'] %}<tool_call>
{"name": "{{ c['function']['name'] }}", "arguments": {{ c['function']['arguments'] | tojson }}}
</tool_call>{% endfor %}{% endif %}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% set first = tools[0]['function']['name'] if tools else '' %}{% set last = messages[-1]['content'] if messages[-1]['role'] == 'user' else '' %}"""


def _template(replies: Sequence[Reply], calls: Sequence[Call]) -> str:
    cases = [(reply.when, f"<|{reply.name}|>") for reply in replies]
    for call in calls:
        cases.append((f"last and bare and ({call.when})", f"<|{call.name}-bare|>"))
        cases.append((f"last and tools and ({call.when})", f"<|{call.name}|>"))
    body = "".join(
        f"{{% {'elif' if index else 'if'} {when} %}}{mark}"
        for index, (when, mark) in enumerate(cases)
    )
    return _HEAD + body + "{% endif %}{% endif %}"


# ---------------------------------------------------------------------------------- weights


def _tensors(made: Script) -> dict[str, np.ndarray[Any, Any]]:
    count = len(made.vocabulary)
    rng = np.random.default_rng(7)
    embedding = rng.standard_normal((count, WIDTH)).astype(np.float32)
    output = np.zeros((count, WIDTH), np.float32)
    # Many tokens are last ones. As many directions in one row of the output would drown the others,
    # so they share one.
    end = SPECIAL.index(END)
    last = [before for before, after in made.successors.items() if after == end]
    embedding[last] = embedding[last[0]]
    output[end] = FIRST * embedding[last[0]] / np.linalg.norm(embedding[last[0]])
    for before, after in made.successors.items():
        if after == end:
            continue
        output[after] += FIRST * embedding[before] / np.linalg.norm(embedding[before])
    for before, after, weight in made.others:
        output[after] += weight * embedding[before] / np.linalg.norm(embedding[before])
    small = (rng.standard_normal((WIDTH, WIDTH)) * 0.02).astype(np.float32)
    one, zero = np.ones(WIDTH, np.float32), np.zeros((WIDTH, WIDTH), np.float32)
    return {
        "embedding": embedding, "output": output, "norm": one,
        "attn_norm": one, "ffn_norm": one, "attn_q": small, "attn_k": small, "attn_v": small,
        "attn_output": zero, "ffn_gate": small, "ffn_up": small, "ffn_down": zero,
    }  # fmt: skip


def write_gguf(
    path: Path,
    made: Script | None = None,
    *,
    architecture: str = "llama",
    template: bool = True,
    omit: Sequence[str] = (),
    pooling: int = 0,
) -> Path:
    """Write the model as one GGUF file.

    Args:
        architecture: what the header claims; the tensors stay a Llama's.
        template: whether the file carries its chat template.
        omit: tensors to leave out, such as `("output_norm.weight",)`, for a file that is whole and
            yet cannot be loaded.
        pooling: ggml's number of a pooling, for a file that says it makes embeddings; 0 without.
    """
    import gguf

    made = made or script()
    tensors = _tensors(made)
    out = gguf.GGUFWriter(str(path), architecture)
    out.add_name("scripted")
    if pooling:
        out.add_pooling_type(gguf.PoolingType(pooling))
    out.add_context_length(CONTEXT)
    out.add_embedding_length(WIDTH)
    out.add_block_count(1)
    out.add_feed_forward_length(WIDTH)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_rope_freq_base(10000.0)
    out.add_vocab_size(len(made.vocabulary))
    out.add_file_type(0)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(list(made.vocabulary))
    out.add_token_types(list(made.kinds))
    out.add_token_merges(["h e"])
    out.add_bos_token_id(0)
    out.add_eos_token_id(SPECIAL.index(END))
    out.add_add_bos_token(False)
    if template:
        out.add_chat_template(made.template)
    names = {
        "embedding": "token_embd.weight",
        "output": "output.weight",
        "norm": "output_norm.weight",
    }
    for name, tensor in tensors.items():
        full = names.get(name, f"blk.0.{name}.weight")
        if full not in omit:
            out.add_tensor(full, tensor)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


_HF_NAMES = {
    "embedding": "model.embed_tokens", "output": "lm_head", "norm": "model.norm",
    "attn_norm": "model.layers.0.input_layernorm",
    "ffn_norm": "model.layers.0.post_attention_layernorm",
    "attn_q": "model.layers.0.self_attn.q_proj", "attn_k": "model.layers.0.self_attn.k_proj",
    "attn_v": "model.layers.0.self_attn.v_proj", "attn_output": "model.layers.0.self_attn.o_proj",
    "ffn_gate": "model.layers.0.mlp.gate_proj", "ffn_up": "model.layers.0.mlp.up_proj",
    "ffn_down": "model.layers.0.mlp.down_proj",
}  # fmt: skip


def write_hf(folder: Path, made: Script | None = None) -> Path:
    """Write the model as a Hugging Face folder (safetensors); needs the `tokenizers` package."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    made = made or script()
    folder.mkdir(parents=True, exist_ok=True)
    words = made.vocabulary
    tokenizer = Tokenizer(
        models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[("h", "e")])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    control = [word for word, kind in zip(words, made.kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens(
        [AddedToken(word, special=True, normalized=False) for word in control]
    )
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in USER])
    assert tokenizer.get_vocab_size() == len(words)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "vocab_size": len(words), "hidden_size": WIDTH, "intermediate_size": WIDTH,
        "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
        "head_dim": WIDTH // HEADS, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "float32",
        "bos_token_id": 0, "eos_token_id": SPECIAL.index(END),
    }  # fmt: skip
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[0], "eos_token": END,
        "chat_template": made.template, "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    generation = {"bos_token_id": 0, "eos_token_id": SPECIAL.index(END)}
    for name, value in (
        ("config", config),
        ("tokenizer_config", told),
        ("generation_config", generation),
    ):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=1), encoding="utf-8")
    tensors = {f"{_HF_NAMES[name]}.weight": tensor for name, tensor in _tensors(made).items()}
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def write_safetensors(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    """The format itself: u64 length of a JSON header, the header, the bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).tobytes())
