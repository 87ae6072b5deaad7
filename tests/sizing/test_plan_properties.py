"""What must hold for every model, machine and setting."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginekit.catalog import catalog_names, describe
from enginekit.hardware import preset
from enginekit.sizing.allocate import Allocation, Setting
from enginekit.sizing.budget import devices
from enginekit.sizing.compute import in_one_piece, usual_ubatch
from enginekit.sizing.kv_cache import llamacpp_cache, state_bytes
from enginekit.sizing.plan import plan
from enginekit.sizing.policy import COMPILED, CONTEXT, PAGED, POLICIES, WARMED, Policy
from enginekit.sizing.split import largest, layered
from enginekit.sizing.tables import cache_table, pad, weight_table
from enginekit.sizing.terms import allocated_devices

MODELS = (
    "llama3.1-8b", "llama3.1-70b", "qwen3-30b-a3b", "gemma3-27b", "qwen3.5-27b", "deepseek-v3",
    "gpt-oss-20b", "gemma4-e2b", "command-r-35b", "smollm2-135m", "bge-m3",
)  # fmt: skip
MACHINES = (
    "rtx3060-12", "rtx4090", "2xrtx3090", "4xrtx4090", "8xh100", "m3-max-128", "m1-8",
    "strix-halo-128", "raspberry-pi-5", "cpu-64", "arc-b580", "gb10",
)  # fmt: skip
POOLS = (PAGED, WARMED, COMPILED)
models, machines = st.sampled_from(MODELS), st.sampled_from(MACHINES)
contexts = st.integers(1, 200_000)


def total(model: str, machine: str, **options: object) -> int:
    made = plan(describe(model), preset(machine), **options)  # type: ignore[arg-type]
    return sum(device.used.expected for device in made.devices)


@given(models, machines, contexts, contexts)
@settings(max_examples=60, deadline=None)
def test_more_context_never_needs_less(model: str, machine: str, one: int, two: int) -> None:
    low, high = sorted((one, two))
    less = plan(describe(model), preset(machine), context=low)
    more = plan(describe(model), preset(machine), context=high)
    assert not (more.fits and not less.fits)
    if less.split == more.split:
        pairs = zip(less.devices, more.devices, strict=True)
        assert all(a.used.expected <= b.used.expected for a, b in pairs)


@given(models, machines, st.integers(1, 64), st.integers(1, 64))
@settings(max_examples=40, deadline=None)
def test_more_users_never_need_less(model: str, machine: str, one: int, two: int) -> None:
    few, many = sorted((one, two))
    less = plan(describe(model), preset(machine), context=2048, users=few)
    more = plan(describe(model), preset(machine), context=2048, users=many)
    assert not (more.fits and not less.fits)


@given(models, machines, st.sampled_from(["Q4_K_M", "F16"]), contexts, st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_the_search_and_the_shown_devices_add_up_to_the_same(
    model: str, machine: str, quantization: str, context: int, users: int
) -> None:
    """`excess` is written for speed; `allocated_devices` is what people see."""
    spec = describe(model)
    sizer = Allocation(spec, CONTEXT, devices(preset(machine), CONTEXT), 512)
    setting = Setting(quantization, context, users, "q8_0")
    places = [*sizer.places(), sizer.whole(0)]
    if sizer.devices.gpus:
        half = layered(sizer.n, sizer.devices.gpus, sizer.n // 2)
        places += [half, sizer.without_experts(sizer.n // 3)]
    for place in places:
        shown = allocated_devices(sizer, setting, place)
        lent = [(0, 0)] * len(shown)
        for device in shown[:-1]:
            gpu = next(gpu for gpu in place.gpus if gpu.index == device.index)
            if gpu.shared:
                used = device.used
                own = gpu.carve_out
                more = (max(0, used.expected - own), max(0, used.high - own))
                lent[-1] = (lent[-1][0] + more[0], lent[-1][1] + more[1])
        pairs = list(zip(shown, lent, strict=True))
        expected = [device.used.expected + plus[0] - device.limit for device, plus in pairs]
        kept = [
            device.used.expected + plus[0] - device.limit + device.margin for device, plus in pairs
        ]
        high = [device.used.high + plus[1] - device.limit for device, plus in pairs]
        tight, fits = max(expected), max(*kept, *high)
        assert abs(sizer.excess(setting, place, margin=False) - tight) <= 2
        assert abs(sizer.excess(setting, place) - fits) <= 2


@given(models, machines, st.sampled_from([CONTEXT, *POOLS]))
@settings(max_examples=60, deadline=None)
def test_the_largest_context_fits_and_the_next_does_not(
    model: str, machine: str, policy: Policy
) -> None:
    spec, computer = describe(model), preset(machine)
    # One command: a larger batch would have its own largest text.
    options = {"policy": policy, "ubatch": usual_ubatch(spec, policy, 4096)}
    best = plan(spec, computer, context=4096, **options).largest_context  # type: ignore[arg-type]
    if best:
        assert plan(spec, computer, context=best, **options).fits  # type: ignore[arg-type]
    if best < spec.context_length:
        beyond = plan(spec, computer, context=best + 256, **options)  # type: ignore[arg-type]
        whole = ("one GPU", "several GPUs") if computer.gpus else ("CPU",)
        refused = any("must fit into one batch" in note for note in beyond.notes)
        assert not refused or in_one_piece(spec)
        assert refused or not (beyond.fits and beyond.where in whole)


@given(models, machines, st.sampled_from([CONTEXT, *POOLS]))
@settings(max_examples=60, deadline=None)
def test_the_most_users_fit_and_one_more_does_not(model: str, machine: str, policy: object) -> None:
    spec, computer = describe(model), preset(machine)
    first = plan(spec, computer, policy=policy, context=2048)  # type: ignore[arg-type]
    most = first.most_users
    if first.fits and 0 < most < 4096:
        made = plan(spec, computer, policy=policy, context=2048, users=most)  # type: ignore[arg-type]
        assert made.fits
        more = plan(spec, computer, policy=policy, context=2048, users=most + 1)  # type: ignore[arg-type]
        if first.where in ("one GPU", "several GPUs"):
            assert not (more.fits and more.where in ("one GPU", "several GPUs"))


@given(models, machines, st.sampled_from(sorted(POLICIES)))
@settings(max_examples=80, deadline=None)
def test_every_plan_is_whole(model: str, machine: str, policy: str) -> None:
    """Ranges are ordered, verdicts agree with the sums, and the dictionary is plain."""
    made = plan(describe(model), preset(machine), policy=POLICIES[policy])
    for device in made.devices:
        for amount in (*device.terms.values(), device.used):
            assert 0 <= amount.low <= amount.expected <= amount.high
        if made.fits:
            assert device.used.expected + device.margin <= device.limit
            assert device.used.high <= device.limit
    assert (made.where == "nowhere") == (made.verdict == "no")
    assert made.fits or made.verdict == "tight" or made.binding
    document = made.to_dict()
    assert document["fits"] is made.fits
    assert set(document) >= {"devices", "speed", "quantizations", "fixes", "command"}


@given(models, machines)
@settings(max_examples=40, deadline=None)
def test_every_fix_that_names_a_setting_works(model: str, machine: str) -> None:
    spec, computer = describe(model), preset(machine)
    made = plan(spec, computer, context=32768, users=2)
    for fix in made.fixes:
        word = fix.change.split()
        options: dict[str, object] = {"context": 32768, "users": 2}
        if "+" in word:
            continue
        if word[0] == "context":
            options["context"] = int(word[1])
        elif word[-1] == "cache":
            options["cache_type"] = word[0]
        elif word[-1] in ("user", "users"):
            options["users"] = int(word[0])
        elif len(word) == 1:
            options["quantization"] = word[0]
        else:
            continue
        again = plan(spec, computer, **options)  # type: ignore[arg-type]
        assert again.fits, fix
        assert again.where == fix.where


@pytest.mark.parametrize("name", catalog_names())
def test_the_running_sums_are_the_cache_formula(name: str) -> None:
    """The tables that searches use say what `llamacpp_cache` says."""
    spec = describe(name)
    for context, slots, kind in ((1000, 1, "f16"), (8192, 4, "q8_0"), (100_000, 3, "f16")):
        table, cache = (
            cache_table(spec, kind),
            llamacpp_cache(spec, context, slots=slots, type_k=kind, type_v=kind),
        )
        spans = table.spans(pad(context), slots, 512)
        assert sum(sums[-1] * cells for _, sums, cells in spans) == cache.attention + cache.sliding
        assert table.state[-1] * slots == cache.recurrent == state_bytes(spec) * slots


@pytest.mark.parametrize("name", catalog_names())
def test_no_weight_is_lost_in_a_split(name: str) -> None:
    spec = describe(name)
    table = weight_table(spec, "Q4_K_M")
    whole = table.layers[-1] + table.embedding + table.tail - table.tied_copy
    assert whole == table.found.total


@given(st.integers(1, 200), st.integers(1, 16), st.integers(0, 100))
def test_every_layer_has_one_place(layers: int, count: int, first: int) -> None:
    from enginekit.sizing.policy import GIB

    machine = preset("rtx4090")
    gpus = tuple(replace(machine.gpus[0], index=i, free_bytes=(i + 2) * GIB) for i in range(count))
    from enginekit.sizing.budget import devices

    found = devices(replace(machine, gpus=gpus), CONTEXT).gpus
    first = min(first, layers)
    place = layered(layers, found, first)
    assert place.bounds[0] == first
    assert place.bounds[-1] == layers
    assert list(place.bounds) == sorted(place.bounds)
    assert len(place.bounds) == count + 1


@given(st.integers(-5, 400), st.integers(1, 300), st.sampled_from([1, 2, 3]))
def test_the_search_finds_the_last_that_fits(edge: int, high: int, power: int) -> None:
    def over(n: int) -> int:
        return n**power - edge**power if edge >= 0 else n + 1

    found = largest(over, 1, high)
    assert found == max(min(edge, high), 0)


def test_an_unknown_layout_is_a_range_and_says_so() -> None:
    spec = describe("llama3.1-8b")
    layers = tuple(replace(layer, attention="unknown") for layer in spec.layers)
    odd = replace(spec, layers=layers, architecture="newarch", known_layout=False)
    made = plan(odd, preset("rtx4090"), context=8192)
    cache = made.devices[0].terms["cache"]
    assert cache.low == 0
    assert cache.high == 4 * cache.expected
    assert "unknown attention layout" in cache.reason
    assert any("unknown attention layout" in note for note in made.notes)
    pooled = plan(odd, preset("rtx4090"), context=8192, policy=PAGED, quantization="fp8")
    assert pooled.devices[0].terms["cache"].low == 0
    assert any("unknown attention layout" in note for note in pooled.notes)


@given(models, machines, contexts, st.sampled_from(sorted(POLICIES)))
@settings(max_examples=60, deadline=None)
def test_each_rung_of_the_ladder_says_what_its_own_plan_says(
    model: str, machine: str, context: int, rules: str
) -> None:
    """The ladder asks of a few quantizations and concludes for those that need less on any device."""
    facts, computer, policy = describe(model), preset(machine), POLICIES[rules]
    gpus = bool(devices(computer, policy).gpus)
    for rung in plan(facts, computer, policy=policy, context=context).quantizations:
        own = plan(facts, computer, policy=policy, context=context, quantization=rung.name)
        moved = gpus and own.where not in ("one GPU", "several GPUs")
        if rung.verdict == "fits":
            assert (own.verdict, moved) == ("fits", False), rung.name
        elif rung.verdict == "tight":
            assert own.verdict == "tight" or moved, rung.name
        else:
            assert own.verdict == "no" or moved, rung.name
        if rung.with_host:
            assert own.verdict == "fits", rung.name
