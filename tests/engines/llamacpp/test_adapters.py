"""LoRA adapters by name and number, and images that a real projector saw."""

from __future__ import annotations

import json

import pytest

from enginekit.engines.llamacpp import LlamaCpp
from enginekit.engines.llamacpp.facts import facts_of
from enginekit.errors import BadRequest, Unsupported
from tests.engines.llamacpp.test_llamacpp import TARGET, body, chat, engine, listing, props
from tests.engines.recordings import decode, load

ADAPTERS = (
    {"id": 0, "path": "/m/pirate.gguf", "scale": 1.0},
    {"id": 1, "path": "/m/monk.gguf", "scale": 1.0},
)


@pytest.mark.parametrize(
    ("wish", "wire"),
    [
        (((1, 0.5),), [{"id": 1, "scale": 0.5}]),
        ((("monk", 0.5), ("pirate", 1)), [{"id": 1, "scale": 0.5}, {"id": 0, "scale": 1.0}]),
        ((), [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.0}]),
    ],
)
def test_adapters_by_number_by_name_and_none_of_them(wish, wire) -> None:
    """Seen on b10488: an empty list means those of the launch, so "none" is each at scale 0."""
    facts = facts_of(props(), listing(), ADAPTERS)
    assert body(chat(lora=wish), engine(facts))["lora"] == wire


@pytest.mark.parametrize("wish", [((7, 1.0),), (("abbot", 1.0),), (("lora2", 1),)])
def test_an_adapter_that_is_not_there_is_refused(wish) -> None:
    """The server takes it with 200 and turns all others off."""
    with pytest.raises(Unsupported, match=r"0: /m/pirate\.gguf, 1: /m/monk\.gguf"):
        engine(facts_of(props(), listing(), ADAPTERS)).encode(chat(lora=wish))
    with pytest.raises(Unsupported, match="none"):
        engine().encode(chat(lora=((0, 0.5),)))


@pytest.mark.parametrize("wish", [("pirate",), (1, 2), ((1, "much"),), 5, ((1, 2, 3),)])
def test_adapters_of_another_shape_are_a_bad_request(wish) -> None:
    with pytest.raises(BadRequest, match="lora"):
        engine(facts_of(props(), listing(), ADAPTERS)).encode(chat(lora=wish))


def test_of_a_server_that_was_not_asked_numbers_are_believed() -> None:
    unknown = LlamaCpp(TARGET)
    assert body(chat(lora=((7, 1.0),)), unknown)["lora"] == [{"id": 7, "scale": 1.0}]
    with pytest.raises(Unsupported):
        unknown.encode(chat(lora="pirate"))


def test_images_that_were_seen_and_images_that_could_not_be() -> None:
    """A real projector: its server says that it sees, and what it could not read or fetch."""
    sees = engine(facts_of(json.loads(load("llamacpp", "l_props_sees").body), listing()))
    assert sees.capability("images").support == "native"
    assert sees.capability("audio").support == "none"
    decoded = decode(
        sees.encode(chat(), stream=True).decoder(), [load("llamacpp", "l_image_seen_stream").body]
    )
    assert decoded.text == "Hello there! A café is near."
    for name in ("l_image_away", "l_image_bad", "l_image_file"):
        refused = load("llamacpp", name)
        error = sees.failure(refused.status, refused.headers, refused.body, path=refused.path)
        assert type(error) is BadRequest, name
        assert not error.retryable
