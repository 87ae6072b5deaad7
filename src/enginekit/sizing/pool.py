"""Memory of an engine that takes a share of each GPU and fills it with cache blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache

from enginekit.facts.model import ModelSpec
from enginekit.sizing.allocate import Setting
from enginekit.sizing.budget import Device, Devices
from enginekit.sizing.calibration import NONE
from enginekit.sizing.compute import compiled_compute, pool_compute, rows_of
from enginekit.sizing.kv_cache import BlockPool, mlc_cache, vllm_pool
from enginekit.sizing.outcome import Where
from enginekit.sizing.policy import Policy, Triple
from enginekit.sizing.projector import NOTHING, divided, projector
from enginekit.sizing.shards import padded, whole
from enginekit.sizing.split import tensor_split, tensor_splits
from enginekit.sizing.tables import WeightTable, weight_table


@dataclass(frozen=True, slots=True)
class Shards:
    """GPUs that hold one copy of the model."""

    gpus: tuple[Device, ...]
    tensor: int
    pipeline: int
    total: int = field(init=False)
    """Of the smallest GPU, and what of the tightest can be had and counted on."""
    limit: int = field(init=False)
    budget: int = field(init=False)
    room: int = field(init=False)
    """What its GPUs can hold together."""

    def __post_init__(self) -> None:
        # A question such as "with 64 of them?" repeats one object.
        different = {id(gpu): gpu for gpu in self.gpus}.values()
        for name in ("total", "limit", "budget"):
            least = min([getattr(gpu, name) for gpu in different])
            object.__setattr__(self, name, least)
        object.__setattr__(self, "room", sum([gpu.limit for gpu in self.gpus]))


@dataclass(frozen=True, slots=True)
class Fixed:
    """What each GPU needs before any cache."""

    weights: Triple
    compute: Triple
    projector: Triple
    runtime: Triple

    def total(self, which: int) -> int:
        """Low, expected or high of all four."""
        return (
            self.weights[which] + self.compute[which] + self.projector[which] + self.runtime[which]
        )


@lru_cache(maxsize=8192)
def _vllm(
    spec: ModelSpec, length: int, dtype: str, shards: tuple[int, int, int], block: int
) -> BlockPool:
    tensor, pipeline, batched = shards
    return vllm_pool(
        spec,
        length,
        dtype=dtype,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        batched_tokens=batched,
        block_tokens=block,
    )


class Pooling:
    """The arithmetic of one model under one pool policy on one set of devices."""

    def __init__(
        self,
        spec: ModelSpec,
        policy: Policy,
        devices: Devices,
        *,
        sequences: int | None = None,
        eager: bool = False,
        images: bool = True,
    ) -> None:
        self.spec, self.policy, self.devices = spec, policy, devices
        self.images = images
        self.own_rows = sequences
        self.eager = eager
        self.calibration = NONE
        self.compiled = "mlc" in policy.formats
        self._places: tuple[Devices | None, list[Shards]] = (None, [])
        self._fixed: dict[tuple[str, int, int, int, int], Fixed] = {}
        self._besides: dict[tuple[int, int, int, int], tuple[Triple, Triple]] = {}
        self._tables: dict[tuple[str, int], WeightTable] = {}
        self._defaults: dict[tuple[int, str], tuple[int, int]] = {}
        self._requests: dict[tuple[int, str, int, int, int], tuple[int, int]] = {}

    def places(self) -> list[Shards]:
        """GPU counts to try, fewest first; the CPU if the policy has such a build."""
        asked, found = self._places
        if asked is self.devices:
            return found
        gpus = self.devices.gpus
        found = [
            Shards(gpus[: tensor * pipeline], tensor, pipeline)
            for tensor, pipeline in tensor_splits(
                self.spec, len(gpus), self.policy.replicates_heads, self.policy.pipelines
            )
        ]
        if not found and self.policy.cpu:
            found.append(Shards((self.devices.host,), 1, 1))
        self._places = self.devices, found
        return found

    def everywhere(self) -> Shards:
        """On all GPUs that can be used at once: the last of `places()`, without making the others."""
        rules, count = self.policy, len(self.devices.gpus)
        tensor, pipeline = tensor_split(self.spec, count, rules.replicates_heads, rules.pipelines)
        return Shards(self.devices.gpus[: tensor * pipeline], tensor, pipeline)

    def roomy(self, quantization: str) -> list[Shards]:
        """Of `places()` those that can hold the weights; no context or cache helps the others."""
        return [
            place
            for place in self.places()
            if self.weights(quantization, place.tensor).layers[-1] <= place.room
        ]

    def passing(self, names: Sequence[str], test: Callable[[str], bool]) -> list[str]:
        """The quantizations that pass. Each is tested: kernels pad some with fewer bits to more."""
        return [name for name in names if test(name)]

    def default_rows(self, place: Shards) -> tuple[int, int]:
        """Batched tokens and sequences that the engine chooses by itself."""
        key = place.total, place.gpus[0].name
        found = self._defaults.get(key)
        if found is None:
            own = self.policy.host_rows if place.gpus[0].host else (0, 0)
            tokens, sequences = own if own[0] else rows_of(self.policy, *key)
            tokens = self.policy.warm_tokens.get(self.spec.architecture, tokens)
            found = self._defaults[key] = tokens, sequences
        return found

    def rows(self, place: Shards, users: int) -> tuple[int, int]:
        """Batched tokens and sequences of the start-up run: a sequence for every user.

        A batch has a token for each sequence at least; vLLM refuses any smaller.
        """
        tokens, sequences = self.default_rows(place)
        sequences = max(sequences, users) if self.own_rows is None else self.own_rows
        return tokens if self.compiled else max(tokens, sequences), sequences

    def served(self, setting: Setting) -> bool:
        """Whether the engine's default mode holds less than this, so that another must be asked for."""
        modest = self.policy.modest
        return bool(modest) and (
            setting.users > 1 or setting.context > modest or self.own_rows is not None
        )

    def weights(self, quantization: str, tensor: int = 1) -> WeightTable:
        """Weights with what loading adds to the experts."""
        found = self._tables.get((quantization, tensor))
        if found is None:
            pads = self.policy.expert_padding.get(quantization.lower())
            gpus = self.devices.gpus
            capability = gpus[0].capability if gpus else None
            factor = padded(self.spec, pads, tensor, capability)
            found = weight_table(self.spec, quantization, factor)
            self._tables[quantization, tensor] = found
        return found

    def fixed(self, setting: Setting, place: Shards) -> Fixed:
        """Weights, activations and runtime of one GPU."""
        rows = self.rows(place, setting.users)
        key = (setting.quantization, *rows, place.tensor, place.pipeline)
        found = self._fixed.get(key)
        if found is None:
            found = self._fixed[key] = self._measure(setting, place)
        return found

    def projector(self, quantization: str) -> Triple:
        """What sees, of one copy of the model."""
        return projector(self.spec, self.policy, quantization) if self.images else NOTHING

    def text_only(self) -> Pooling:
        """The same without what sees."""
        found = copy(self)
        found.images, found._fixed = False, {}
        return found

    def _measure(self, setting: Setting, place: Shards) -> Fixed:
        table = self.weights(setting.quantization, place.tensor)
        parts = place.tensor * place.pipeline
        tail = table.tail - table.tied_copy
        size = table.layers[-1] // parts
        # The first pipeline stage holds the input table, the last the output matrix.
        size += (
            max(table.embedding, tail) if place.pipeline > 1 else table.embedding + tail
        ) // place.tensor
        if self.policy.whole_shards:
            size += whole(self.spec, setting.quantization, place.tensor) // place.pipeline
        rows = self.rows(place, setting.users)
        compute, runtime = self._beside(place, *rows)
        batched = rows[0] if self.policy.kept_images else 0
        return Fixed(
            weights=(int(size * table.low), size, int(size * table.high)),
            compute=compute,
            projector=divided(
                self.projector(setting.quantization), self.spec, place.tensor, batched
            ),
            runtime=runtime,
        )

    def _beside(self, place: Shards, batched: int, sequences: int) -> tuple[Triple, Triple]:
        """Activations and runtime of one GPU, the same at every quantization."""
        key = (batched, sequences, place.tensor, place.pipeline)
        found = self._besides.get(key)
        if found is None:
            found = self._besides[key] = self._work(place, batched, sequences)
        return found

    def _work(self, place: Shards, batched: int, sequences: int) -> tuple[Triple, Triple]:
        parts = place.tensor * place.pipeline
        compute = pool_compute(
            self.spec,
            self.policy,
            sequences=sequences,
            batched_tokens=batched,
            tensor_parallel=place.tensor,
            eager=self.eager,
        )
        if self.compiled:
            work = compiled_compute(self.spec, batched, sequences, place.tensor)
            compute = (work * 9 // 10, work, work * 11 // 10)
        runtime = self.policy.runtime.get(place.gpus[0].backend, (0, 0, 0))
        if parts > 1:
            more = self.policy.parallel_overhead
            runtime = (runtime[0] + more[0], runtime[1] + more[1], runtime[2] + more[2])
        return (
            self.calibration.scaled("compute", compute),
            self.calibration.scaled("runtime", runtime),
        )

    def room(self, setting: Setting, place: Shards) -> int:
        """Bytes of cache on the tightest GPU that a plan may count on."""
        return place.budget - self.fixed(setting, place).total(1)

    def request(self, setting: Setting, place: Shards) -> tuple[int, int]:
        """Bytes on each GPU of one request of full length: expected and high."""
        batched = self.rows(place, setting.users)[0]
        key = (setting.context, setting.cache_type, place.tensor, place.pipeline, batched)
        found = self._requests.get(key)
        if found is None:
            found = self._requests[key] = self._requested(setting, place)
        return found

    def _requested(self, setting: Setting, place: Shards) -> tuple[int, int]:
        if not self.spec.causal or not self.spec.layers:
            return 0, 0
        if self.compiled:
            size = mlc_cache(self.spec, setting.context) // (place.tensor * place.pipeline)
            return size, size
        pool = self._pool(setting, place)
        return pool.request, pool.high

    def _pool(self, setting: Setting, place: Shards) -> BlockPool:
        shards = (place.tensor, place.pipeline, self.rows(place, setting.users)[0])
        block = self.policy.block_tokens.get(place.gpus[0].backend, 16)
        return _vllm(self.spec, setting.context, setting.cache_type, shards, block)

    def token_limit(self, setting: Setting, place: Shards) -> int:
        """Tokens over all sequences that the engine takes there, if this setting has more; else 0."""
        limit = self.policy.token_limit.get(place.gpus[0].backend, 0)
        return limit if setting.context * max(setting.users, 1) > limit else 0

    def excess(self, setting: Setting, place: Shards, *, margin: bool = True) -> int:
        """Bytes missing on the tightest GPU for all users at full length; 0 or less: none."""
        expected, high = self.request(setting, place)
        users = max(setting.users, 1)
        fixed = self.fixed(setting, place)
        over = expected * users + fixed.total(1) - (place.budget if margin else place.limit)
        # The GPUs of one plan are of one kind.
        limit = self.token_limit(setting, place)
        if limit:
            over = max(over, (setting.context * users - limit) * max(expected, 1) // max(
                setting.context, 1
            ))  # fmt: skip
        if not margin:
            return over
        return max(over, high * users + fixed.total(2) - place.limit)

    def tokens(self, setting: Setting, place: Shards) -> int:
        """Tokens that the pool holds for requests of this length."""
        room = max(self.room(setting, place), 0)
        request, _ = self.request(setting, place)
        if not request:
            return 0
        if self.compiled:
            # No mode keeps more than all its sequences can fill; the default one that of one.
            users = self.rows(place, setting.users)[1] if self.served(setting) else 1
            most = users * setting.context
            limit = self.policy.token_limit.get(place.gpus[0].backend, most)
            return min(int(room * setting.context / request), most, limit)
        pool = self._pool(setting, place)
        return pool.tokens(room)

    def where(self, place: Shards) -> Where:
        """The placement in a word."""
        if place.gpus[0].host:
            return "CPU"
        return "one GPU" if len(place.gpus) == 1 else "several GPUs"
