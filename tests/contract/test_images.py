"""Images on a real llama.cpp server with a real, tiny vision projector, started here.

`ENGINEKIT_LIVE_SEES_URL` with `_ENGINE` and `_MODEL` points it at another server whose model is the scripted one
with the same projector.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from typing import Any

import pytest

from enginekit.errors import BadRequest, ContextOverflow, Unsupported
from enginekit.kit.client import Client
from enginekit.types import (
    AudioPart,
    ChatRequest,
    Constraint,
    ImagePart,
    Message,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)
from tests.contract.conftest import Place
from tests.support.models import scripted_gguf
from tests.support.projector import PATCHES, png, write_projector
from tests.support.scripted import GREETING
from tests.support.server import refused_url

WEATHER = Tool(
    name="get_weather",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
    },
)
TALL = png(20, 30, (0, 9, 200))
GIVEN = {
    name: os.environ.get(f"ENGINEKIT_LIVE_{name}", "") for name in ("SEES_URL", "ENGINE", "MODEL")
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if GIVEN["SEES_URL"]:
        settings = {
            "engine": GIVEN["ENGINE"],
            "base_url": GIVEN["SEES_URL"],
            "model": GIVEN["MODEL"],
        }
        yield Place(settings, scripted=True)
        return
    from enginekit.launch.embedded import EmbeddedSpec, acquire

    eyes = write_projector(tmp_path_factory.mktemp("eyes") / "mmproj.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGINEKIT_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        spec = EmbeddedSpec(
            model_path=scripted_gguf(), context=2048, slots=1, extra_args=("--mmproj", str(eyes))
        )
        with acquire(spec, budget=90) as lease:
            settings = {
                "engine": "llamacpp",
                "base_url": lease.base_url,
                "api_key": lease.api_key,
                "model": "scripted",
            }
            yield Place(settings, scripted=True)


def show(*parts: TextPart | ImagePart | AudioPart | str, **more: Any) -> ChatRequest:
    content = tuple(TextPart(text=part) if isinstance(part, str) else part for part in parts)
    before = more.pop("before", ())
    return ChatRequest(
        model="",
        messages=(*before, Message(role="user", content=content)),
        sampling=Sampling(temperature=0.0, max_tokens=64),
        **more,
    )


def image(data: bytes | None = None, **more: Any) -> ImagePart:
    return ImagePart(data=png() if data is None and "url" not in more else data, **more)


def test_the_probe_says_that_it_sees(client: Client):
    client.connect()
    assert client.engine is not None
    assert client.engine.capability("images").support == "native"
    assert client.engine.capability("audio").support == "none"


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(("Hi.", image(mime_type="image/png")), id="bytes"),
        pytest.param((image(mime_type="image/png"), "Hi."), id="before the text"),
        pytest.param(("Hi.", image()), id="of unsaid type"),
        pytest.param(("Hi.", image(TALL, mime_type="image/jpeg")), id="of wrongly said type"),
        pytest.param(
            ("Hi.", image(url="data:image/png;base64," + base64.b64encode(png()).decode())),
            id="data url",
        ),
    ],
)
def test_an_image_is_taken_and_costs_its_patches(client, ask, parts):
    text = ask(client, show("Hi."))
    reply = ask(client, show(*parts))
    assert reply.text.strip() == GREETING
    assert reply.usage.prompt_tokens == text.usage.prompt_tokens + PATCHES


def test_several_images_are_several(client, ask):
    one = ask(client, show(image(), "Hi.")).usage.prompt_tokens
    three = ask(client, show(image(), image(TALL), image(), "Hi.")).usage.prompt_tokens
    assert three >= one + 2 * PATCHES


def test_an_image_streams(client, listen):
    chunks = listen(client, show("Hi.", image()))
    assert "".join(chunk.text for chunk in chunks).strip() == GREETING


def test_tools_go_with_images_free_and_forced(client, ask):
    (free,) = ask(client, show("CALL", image(), tools=(WEATHER,))).tool_calls
    assert (free.name, free.parsed()) == ("get_weather", {"city": "Rome"})
    forced = show("Hi.", image(), tools=(WEATHER,), tool_choice=ToolChoice(mode="required"))
    (call,) = ask(client, forced).tool_calls
    assert set(call.parsed()) == {"city"}


def test_a_choice_goes_with_images(client, ask):
    constraint = Constraint(kind="choice", value=("red", "blue"))
    reply = ask(client, show("Hi.", image(), constraint=constraint, reasoning=False))
    assert reply.text in ("red", "blue")


def test_an_image_in_a_tool_result_is_taken(client, ask):
    call = ToolCall(id="call_000000001", name="get_weather", arguments='{"city": "Rome"}')
    seen = (TextPart(text="18 degrees"), image())
    before = (
        Message(role="user", content="CALL"),
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", content=seen, tool_call_id=call.id, tool_name=call.name),
    )
    assert ask(client, show("Thanks.", before=before, tools=(WEATHER,))).text


@pytest.mark.parametrize("data", [b"no image at all", png()[:40], b""])
def test_bytes_that_are_no_image_are_a_bad_request(client, ask, data):
    with pytest.raises(BadRequest):
        ask(client, show("Hi.", image(data, mime_type="image/png")))


def test_an_image_that_cannot_be_fetched_is_not_the_engines_fault(client, ask):
    """llama.cpp fetches by itself; where it cannot, enginekit does, if it is told to."""
    with pytest.raises((BadRequest, Unsupported)):
        ask(client, show("Hi.", image(url=f"{refused_url()}/x.png")))
    with pytest.raises((BadRequest, Unsupported)):
        ask(client, show("Hi.", image(url="file:///etc/hostname")))


def test_more_images_than_fit_say_so_with_both_numbers(client, ask):
    client.connect()
    window = client.facts.context_window
    with pytest.raises(ContextOverflow) as caught:
        ask(client, show(*[image()] * (window // PATCHES + 1), "Hi."))
    assert caught.value.limit == window
    assert caught.value.requested > window


def test_sound_is_refused_by_a_model_that_only_sees(client, ask):
    with pytest.raises(Unsupported, match="audio"):
        ask(client, show("Hi.", AudioPart(data=b"RIFF", format="wav")))
