"""LangChain content blocks to our parts: v1 and v0 blocks, OpenAI's and Anthropic's spellings.

Pure. A block of a kind that no engine could be given is refused by name, never skipped.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from enginekit.errors import Unsupported
from enginekit.types import AudioPart, FilePart, ImagePart, Part, TextPart

REASONING_BLOCKS = frozenset({"reasoning", "thinking", "redacted_thinking"})
"""Blocks that hold thinking; they become `Message.reasoning`, not a part."""

CALL_BLOCKS = frozenset(
    {"tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "input_json_delta"}
)
"""Blocks that repeat what `AIMessage.tool_calls` holds."""

_AUDIO_FORMATS = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav", "vnd.wave": "wav"}


def part_of(block: str | Mapping[str, Any], role: str) -> Part:
    """One content block as a part.

    Raises Unsupported (feature `content`, with the block's type) for a block that cannot be
    expressed, and for base64 that is not.
    """
    if isinstance(block, str):
        return TextPart(text=block)
    kind = block.get("type")
    convert = _PARTS.get(kind or "")
    if convert is None:
        _refuse(block, role, "no engine has a place for it")
    try:
        return convert(block)
    except (KeyError, TypeError, AttributeError, binascii.Error, ValueError) as error:
        _refuse(block, role, f"it is not what a block of that type looks like ({error!r})")


def reasoning_of(block: Mapping[str, Any]) -> str:
    """The thinking in a `reasoning` or `thinking` block; "" for a redacted one."""
    return str(block.get("reasoning") or block.get("thinking") or "")


def _refuse(block: Mapping[str, Any], role: str, why: str) -> NoReturn:
    kind = block.get("type")
    raise Unsupported(
        f"a content block of type {kind!r} in the {role} message cannot be sent: {why}; its keys "
        f"are {', '.join(map(str, block))}",
        hint="known: text, image, image_url, audio, input_audio, file, document, text-plain",
        feature="content",
        rule=f"langchain.content.{kind}",
    )


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _data_url(url: str) -> tuple[str, bytes]:
    head, _, body = url.partition(",")
    if not url.startswith("data:") or not head.endswith(";base64"):
        raise ValueError("not a base64 data: URL")
    return head.removeprefix("data:").removesuffix(";base64"), _bytes(body)


def _text(block: Mapping[str, Any]) -> Part:
    return TextPart(text=block["text"])


def _refusal(block: Mapping[str, Any]) -> Part:
    return TextPart(text=block["refusal"])


def _plain(block: Mapping[str, Any]) -> Part:
    text = block.get("text")
    return TextPart(text=text if text is not None else _bytes(block["base64"]).decode())


def _source(block: Mapping[str, Any]) -> tuple[bytes | None, str | None, str | None]:
    """Bytes, URL and mime type of a v1, v0 or Anthropic data block."""
    source = block.get("source")
    if isinstance(source, Mapping):
        if source["type"] == "url":
            return None, source["url"], None
        if source["type"] == "text":
            return source["data"].encode(), None, source.get("media_type", "text/plain")
        return _bytes(source["data"]), None, source.get("media_type")
    mime = block.get("mime_type")
    encoded = block.get("base64")
    if encoded is None and block.get("source_type") in ("base64", "text"):
        encoded = block["data"]
        if block["source_type"] == "text":
            return encoded.encode(), None, mime or "text/plain"
    if encoded is not None:
        return (encoded if isinstance(encoded, bytes) else _bytes(encoded)), None, mime
    if block.get("url") is None:
        raise ValueError("an id of a stored file means nothing to a self-hosted engine")
    return None, block["url"], mime


def _image(block: Mapping[str, Any]) -> Part:
    data, url, mime = _source(block)
    return ImagePart(data=data, url=url, mime_type=mime or "image/png", detail=block.get("detail"))


def _image_url(block: Mapping[str, Any]) -> Part:
    image = block["image_url"]
    if isinstance(image, str):
        return ImagePart(url=image)
    return ImagePart(url=image["url"], detail=image.get("detail"))


def _audio(block: Mapping[str, Any]) -> Part:
    data, url, mime = _source(block)
    name = (mime or "audio/wav").partition("/")[2]
    return AudioPart(data=data, url=url, format=_AUDIO_FORMATS.get(name, name))


def _input_audio(block: Mapping[str, Any]) -> Part:
    audio = block["input_audio"]
    return AudioPart(data=_bytes(audio["data"]), format=audio["format"])


def _file(block: Mapping[str, Any]) -> Part:
    file = block.get("file")
    if isinstance(file, Mapping):
        mime, data = _data_url(file["file_data"])
        return FilePart(data=data, mime_type=mime, name=file.get("filename"))
    found, url, kind = _source(block)
    if found is None:
        if url is None or not url.startswith("data:"):
            raise ValueError("a document is taken by its bytes, not by URL")
        kind, found = _data_url(url)
    name = (
        block.get("filename") or block.get("title") or (block.get("extras") or {}).get("filename")
    )
    if kind is not None and kind.startswith("text/"):
        return TextPart(text=found.decode())
    return FilePart(data=found, mime_type=kind or "application/octet-stream", name=name)


_PARTS: Mapping[str, Callable[[Mapping[str, Any]], Part]] = {
    "text": _text,
    "refusal": _refusal,
    "text-plain": _plain,
    "image": _image,
    "image_url": _image_url,
    "audio": _audio,
    "input_audio": _input_audio,
    "file": _file,
    "document": _file,
}
