"""Splits between GPUs and host memory: none that exists is missed, and what a plan offers holds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from enginekit.catalog import catalog_names, describe
from enginekit.hardware import preset, preset_names
from enginekit.sizing.allocate import Allocation, Setting
from enginekit.sizing.budget import devices
from enginekit.sizing.outcome import Plan
from enginekit.sizing.plan import plan
from enginekit.sizing.policy import CONTEXT, POLICIES

QUANTIZATIONS = ("Q2_K", "Q4_K_M", "Q8_0", "F16")
models, machines = st.sampled_from(catalog_names()), st.sampled_from(preset_names())


def made(model: str, machine: str, **options: object) -> Plan:
    return plan(describe(model), preset(machine), **options)  # type: ignore[arg-type]


def test_what_neither_side_can_hold_alone_is_split() -> None:
    found = made("gpt-oss-120b", "rtx4090", context=8192)
    assert found.verdict == "fits"
    assert 0 < found.host_expert_layers < 36
    assert all(device.spare >= 0 for device in found.devices)
    assert found.largest_context >= 8192
    assert found.most_users >= 1
    assert next(rung for rung in found.quantizations if rung.name == "MXFP4_MOE").with_host


def test_the_ladder_knows_the_split_that_the_verdict_found() -> None:
    found = made("ministral3-14b", "rx7600", context=131072)
    assert (found.verdict, found.where) == ("fits", "partly on GPU")
    assert next(rung for rung in found.quantizations if rung.name == "Q4_K_M").with_host


@given(
    models,
    machines,
    st.sampled_from(QUANTIZATIONS),
    st.sampled_from([4096, 32768, 131072]),
    st.integers(1, 8),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_no_split_is_missed(
    model: str, machine: str, quantization: str, context: int, users: int, margin: bool
) -> None:
    """Against every split there is: each number of layers, and of layers' experts, on the host."""
    sizer = Allocation(describe(model), CONTEXT, devices(preset(machine), CONTEXT), 512)
    count = len(sizer.devices.gpus)
    if not count:
        return
    setting = Setting(quantization, context, users, "f16")
    places = [sizer.whole(0)]
    places += [sizer._placed(count, first, 0) for first in range(1, sizer.n)]
    if sizer.spec.experts is not None:
        places += [sizer.without_experts(moved) for moved in range(1, sizer.n + 1)]
    found = sizer.offloaded(setting, margin=margin)
    if found is None:
        assert all(sizer.excess(setting, place, margin=margin) > 0 for place in places)
    else:
        assert sizer.excess(setting, found, margin=margin) <= 0
    if margin:
        assert (quantization in sizer.hosted((quantization,), setting)) == (found is not None)


@given(
    models,
    machines,
    st.sampled_from(sorted(POLICIES)),
    st.one_of(st.none(), st.integers(1, 200_000)),
    st.integers(1, 100),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_the_room_that_a_plan_offers_is_there(
    model: str, machine: str, rules: str, context: int | None, users: int, images: bool
) -> None:
    """Planned again with the largest context, or with the most users, it fits."""
    facts, computer = describe(model), preset(machine)
    options = {"policy": POLICIES[rules], "images": images}
    first = plan(facts, computer, context=context, users=users, **options)  # type: ignore[arg-type]
    if first.largest_context:
        again = plan(
            facts,
            computer,
            context=first.largest_context,
            users=users,
            **options,  # type: ignore[arg-type]
        )
        assert again.fits, first.room
    if first.most_users:
        again = plan(
            facts,
            computer,
            context=first.context,
            users=first.most_users,
            **options,  # type: ignore[arg-type]
        )
        assert again.fits, first.room
    refused = any("it must fit into one batch" in note for note in first.notes)
    if first.fits and refused:
        # The memory is there, but no text as long as was asked for is taken.
        assert 0 < first.largest_context < first.context
        assert first.most_users >= min(users, 4096)
    elif first.fits:
        assert first.largest_context >= first.context
        assert first.most_users >= min(users, 4096)
    else:
        assert first.largest_context < first.context
        assert first.most_users < users


def test_no_context_for_so_many_users_is_not_no_context_at_all() -> None:
    found = made("llama3.1-8b", "rtx4090", policy=POLICIES["paged-pool"], users=400)
    assert (found.verdict, found.largest_context) == ("no", 0)
    assert found.room == (
        "no context fits for 400 users beside the weights and the margin; "
        f"{found.most_users} users at 4096 tokens"
    )
    assert found.most_users > 1
