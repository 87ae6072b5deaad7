"""LlamaIndex content blocks to our parts. A block that no engine could be given is refused by name.

Bytes and files are read here; a URL is handed on as it is, never fetched.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from llama_index.core.base.llms.types import (
    AudioBlock,
    CachePoint,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    VideoBlock,
)

from enginekit.errors import Unsupported
from enginekit.types import AudioPart, FilePart, ImagePart, Part, TextPart


def to_content(blocks: Sequence[Any], role: str) -> str | tuple[Part, ...]:
    """A message's content: a plain text where there is nothing else, joined as LlamaIndex does it.

    Raises Unsupported for a block that cannot be sent.
    """
    if len(blocks) == 1 and type(blocks[0]) is TextBlock:
        return blocks[0].text
    parts: list[Part] = []
    for block in blocks:
        _add(block, role, parts)
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    return "\n".join(texts) if len(texts) == len(parts) else tuple(parts)


def _add(block: Any, role: str, parts: list[Part]) -> None:
    if isinstance(block, CachePoint):
        return  # says where a provider may cut its cache; engines here find common prefixes themselves
    if isinstance(block, CitableBlock):
        for inner in block.content:
            _add(inner, role, parts)
        return
    if isinstance(block, CitationBlock):
        _add(block.cited_content, role, parts)
        return
    convert = _PARTS.get(type(block))
    if convert is None:
        _refuse(block, role, "no engine has a place for it")
    try:
        parts.append(convert(block))
    except (ValueError, OSError, binascii.Error) as error:
        _refuse(block, role, f"its data cannot be read ({error})")


def _refuse(block: Any, role: str, why: str) -> NoReturn:
    kind = getattr(block, "block_type", type(block).__name__)
    raise Unsupported(
        f"a content block of type {kind!r} in the {role} message cannot be sent: {why}",
        hint="known: text, image, audio, document, thinking and tool_call (assistant)",
        feature="content",
        rule=f"llama_index.content.{kind}",
    )


def _text(block: TextBlock) -> Part:
    return TextPart(text=block.text)


def _image(block: ImageBlock) -> Part:
    if block.image is None and block.path is None and block.url is not None:
        return ImagePart(
            url=str(block.url),
            mime_type=block.image_mimetype or "image/png",
            detail=block.detail,
        )
    return ImagePart(
        data=block.resolve_image().read(),
        mime_type=block.image_mimetype or "image/png",
        detail=block.detail,
    )


def _audio(block: AudioBlock) -> Part:
    if block.audio is None and block.path is None and block.url is not None:
        return AudioPart(url=str(block.url), format=block.format or "wav")
    return AudioPart(data=block.resolve_audio().read(), format=block.format or "wav")


def _document(block: DocumentBlock) -> Part:
    url = str(block.url) if block.data is None and block.path is None else ""
    if url:
        head, _, body = url.partition(",")
        if not head.startswith("data:") or not head.endswith(";base64"):
            raise ValueError("a document is taken by its bytes or path, not by URL")
        data = base64.b64decode(body, validate=True)
        mime = head.removeprefix("data:").removesuffix(";base64")
    else:
        data = block.resolve_document().read()
        mime = block.document_mimetype or ""
    if mime.startswith("text/") or (not mime and _is_text(data)):
        return TextPart(text=data.decode())
    return FilePart(data=data, mime_type=mime or "application/octet-stream", name=block.title)


def _is_text(data: bytes) -> bool:
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


def _video(block: VideoBlock) -> NoReturn:
    raise ValueError("no engine here reads video")


_PARTS: Mapping[type, Callable[[Any], Part]] = {
    TextBlock: _text,
    ImageBlock: _image,
    AudioBlock: _audio,
    DocumentBlock: _document,
    VideoBlock: _video,
}
