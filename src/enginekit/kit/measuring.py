"""Load a model on the embedded engine and lay what it took beside the plan; later plans use it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from enginekit import registry
from enginekit.errors import ConfigError
from enginekit.kit import embedded, planning
from enginekit.sizing.calibration import TERMS, Measurement
from enginekit.sizing.outcome import Plan

ENGINE = "embedded"
_BUDGET = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A plan, and what the load that it describes really took.

    Attributes:
        plan: without corrections by earlier loads.
        version: of the engine that loaded the model.
        estimated: bytes by term, all devices together.
        taken: the same, as the engine's own log says; only terms that it names.
    """

    plan: Plan
    version: str
    estimated: Mapping[str, int]
    taken: Mapping[str, int]
    problem: str = ""
    """Why later plans are not corrected by it: the file of measured loads cannot be written."""


def measure(
    model: str | os.PathLike[str],
    *,
    context: int | None = None,
    users: int = 1,
    cache_type: str | None = None,
    progress: embedded.Progress | None = None,
) -> Measured:
    """Plan a model for this computer, load it, and keep what its compute buffers took.

    The server is one of its own and stops again. Weights and cache are compared and never
    corrected: they are exact.

    Raises:
        ConfigError: the plan says that it does not fit, so it is not tried.
        EngineKitError: the model cannot be fetched or the server does not start.
    """
    from enginekit.launch._buffers import VERBOSE, buffers
    from enginekit.launch._spec import CONTEXT
    from enginekit.launch.embedded import EmbeddedSpec, acquire

    path = embedded.fetch(os.fspath(model), progress=progress).path
    model_spec = planning.model_of(path)
    serves = model_spec.capabilities
    embeds = bool(serves.embedding or serves.rerank)
    if embeds:
        # The embedded engine takes a text as long as its context in one micro-batch.
        context = context or min(model_spec.context_length or CONTEXT, CONTEXT)
    made = planning.plan(
        path,
        engine=ENGINE,
        context=context,
        users=users,
        cache_type=cache_type,
        ubatch=context if embeds else None,
        calibrated=False,
    )
    if made.verdict == "no":
        raise ConfigError(
            f"{made.model} does not fit on {made.machine}, so it is not loaded: {made.binding}",
            hint=f"enginekit plan {os.fspath(model)}    (says what would make it fit)",
        )
    types = (
        () if cache_type is None else ("--cache-type-k", cache_type, "--cache-type-v", cache_type)
    )
    spec = EmbeddedSpec(
        model_path=path,
        context=made.context,
        slots=users,
        embeddings=embeds,
        extra_args=(*VERBOSE, *types),
    )
    with acquire(spec, budget=_BUDGET, progress=progress) as lease:
        with lease.log_path.open(encoding="utf-8", errors="replace") as log:
            taken = buffers(log)
        version = lease.version
    estimated = {
        term: sum(device.terms[term].expected for device in made.devices if term in device.terms)
        for term in taken
    }
    problem = ""
    for term in TERMS:
        if taken.get(term) and estimated.get(term):
            one = Measurement(
                engine=registry.LAUNCHED[ENGINE],
                version=version,
                architecture=model_spec.architecture,
                backend=made.devices[0].backend,
                term=term,
                estimated=estimated[term],
                measured=taken[term],
            )
            try:
                planning.remember(one)
            except OSError as error:
                problem = f"not kept for later plans: {error}"
    return Measured(plan=made, version=version, estimated=estimated, taken=taken, problem=problem)
