"""How engines take memory, as data: the planner reads a policy and never an engine's name.

`allocate`: exactly what the context needs, once, at load (llama.cpp and what starts it). `pool`: a
share of the device, weights first, the rest becomes blocks of cache (vLLM, TGI, MLC LLM).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType
from typing import Final, Literal

from enginekit.facts.engine import EngineProfile

Backend = Literal["cuda", "rocm", "vulkan", "metal", "xpu", "cpu"]
MIB: Final = 2**20
GIB: Final = 2**30

GGUF_LADDER: Final = (
    "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K", "IQ2_XXS",
)  # fmt: skip
TENSOR_LADDER: Final = ("bf16", "fp8", "awq-int4-g128")
MLC_LADDER: Final = ("q0f16", "q4f16_1", "q3f16_1")

Triple = tuple[int, int, int]
"""Low, expected, high; bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the arithmetic has to know of an engine. All sizes are bytes."""

    name: str
    allocation: Literal["allocate", "pool"]
    formats: tuple[str, ...]
    """Weight formats that it loads."""
    ladder: tuple[str, ...]
    """Quantizations to try, widest first."""
    default_quantization: str
    backends: Mapping[str, Backend]
    """GPU vendor to backend; a vendor that is missing cannot be used."""
    cpu: bool = True
    """Whether the same build also runs without a GPU."""
    cpu_note: str = ""
    runtime: Mapping[str, Triple] = field(default_factory=dict)
    """By backend: what a process takes on each device outside every engine log."""
    contexts: Mapping[tuple[int, int], Triple] = field(default_factory=dict)
    """The same on CUDA by compute capability, where it was measured."""
    margin: int = 0
    """Left free on each GPU on purpose."""
    utilization: float = 1.0
    """Pool only: share of the device's total that may be taken."""
    ubatch: int = 512
    embedding_ubatch: int = 0
    """Micro-batch where a model makes embeddings: a text must fit into one. 0: as `ubatch`."""
    unified_slots: bool = False
    """Whether all users share one cache (`--kv-unified`). llama-server does so only if nobody gives
    `-np`; the commands here do, and each slot then has a cache and windows of its own."""
    context_tiers: tuple[tuple[int, int], ...] = ()
    """Default context by total GPU memory: (at least so many bytes, tokens), largest first."""
    least_context: int = 4096
    """What an automatic context is never shrunk below."""
    offload: bool = False
    """Whether layers or experts may stay in host memory."""
    images: Literal["file", "checkpoint", "none"] = "none"
    """What a model that sees loads beside its text: a projector file, the rest of the publisher's
    checkpoint in 16 bits, or nothing."""
    towers: frozenset[str] = frozenset()
    """Architectures that are loaded with what sees although `images` is `none`."""
    always_sees: bool = False
    """Whether nothing that a person can give leaves out what sees of a model known by name."""
    kept_images: bool = False
    """Pool only: whether the start-up run holds a batch of image tokens that the encoder made."""
    projector_follows: bool = False
    """Whether the projector goes to host memory once a layer does."""
    split: Literal["layers", "tensor"] = "layers"
    cache_types: tuple[str, ...] = ("f16", "q8_0", "q4_0")
    """Cache element types, most exact first."""
    more_cache_types: tuple[str, ...] = ()
    """Others that it takes if asked; they are not offered."""
    sampler_bytes: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Pool only: bytes per row and vocabulary entry of the sampling peak."""
    rows: tuple[tuple[int, int, int, str], ...] = ()
    """Pool only: (GPU of at least so many bytes, batched tokens, sequences, a word that its name has
    not, in small letters), largest first."""
    host_rows: tuple[int, int] = (0, 0)
    """Pool only: batched tokens and sequences of the CPU build where they are others."""
    replicates_heads: bool = True
    """Pool only: whether KV heads are copied where there are more GPUs than heads."""
    pipelines: bool = False
    """Pool only: whether layers may be divided into pipeline stages."""
    visible: Mapping[str, str] = field(default_factory=dict)
    """By backend: how a process is shown some of the GPUs, `{}` for their numbers; empty where
    `devices` is among the flags."""
    graphs: Triple = (0, 0, 0)
    graphs_moe: Triple = (0, 0, 0)
    parallel_overhead: Triple = (0, 0, 0)
    """What each GPU pays when several work on one tensor."""
    expert_padding: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Quantization to what kernels round an expert's outer and its own width up to."""
    whole_shards: bool = False
    """Pool only: whether a shard also holds what `shards.whole` counts."""
    warm_tokens: Mapping[str, int] = field(default_factory=dict)
    """Pool only: by architecture, batched tokens where they are not those of `rows`."""
    compute_capability: tuple[int, int] = (0, 0)
    architectures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By vendor: architectures with kernels; a vendor that is missing is not restricted."""
    block_tokens: Mapping[str, int] = field(default_factory=dict)
    """By backend: tokens of a cache block where it is not 16."""
    token_limit: Mapping[str, int] = field(default_factory=dict)
    """By backend: most tokens over all sequences."""
    startup: tuple[float, float, float] = (0.3, 1.0, 3.0)
    """Seconds beside reading the weights."""
    command: str = ""
    """With `{model}`; what is set follows it, or is where `{settings}` stands."""
    names: Literal["gguf", "hf", "ollama", "mlc"] = "hf"
    """Whose name of a model the command takes."""
    file_option: str = "{}"
    """How the command takes a local file or folder."""
    pair_option: str = ""
    """How it takes a local file with its projector; empty: a file alone has all."""
    repo_option: str = "{name}"
    """How it takes a name: `{name}` and `{quantization}`."""
    exact_option: str = ""
    """How it takes one `{file}` of the GGUF repository `{name}`; `{tag}` is the file's own label."""
    tags: bool = False
    """Whether a name stands for one quantization: another one is had by `other_option` only."""
    other_option: str = ""
    """How it takes the GGUF repository `{name}` where its own name is unknown or is another file."""
    quantize: Mapping[str, str] = field(default_factory=dict)
    """Format to the flag by which the engine makes it of a checkpoint in 16 bits, layer by layer."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """GGUF label to the word that files of the model's native format have in their names."""
    flags: Mapping[str, str] = field(default_factory=dict)
    """Setting to its spelling on the command line, `{}` for the value. `context` is the tokens of all
    users together where memory is allocated for each; `context_each` those of one."""
    together: str = ""
    """Option that takes all settings that are written `name=value`, joined by `;`; empty: each is an
    option of its own."""
    made_by: str = ""
    """How weights of `{label}` are made from a checkpoint in `{folder}`, where a repository holds one
    quantization and most models have none."""
    modest: int = 0
    """Pool only: tokens of the one request that the default mode holds; beyond either, `serves_many`
    is needed. 0: no such mode."""
    notes: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash(self.name)


def _mib(low: int, expected: int, high: int) -> Triple:
    return low * MIB, expected * MIB, high * MIB


# llama.cpp issue 15860: 450-460 MiB on an RTX 4090; issue 27953: 749 MiB on an RTX PRO 6000.
_LLAMACPP_RUNTIME: Final[Mapping[str, Triple]] = MappingProxyType(
    {
        "cuda": _mib(300, 460, 750),
        "rocm": _mib(200, 400, 700),
        "vulkan": _mib(64, 192, 400),
        "xpu": _mib(100, 250, 500),
        "metal": _mib(20, 64, 128),
        "cpu": _mib(30, 64, 160),
    }
)
# A CUDA context holds every kernel that was loaded, compiled for that GPU alone: 297 MiB on an A40
# (driver against log, build 9665), 313 on an RTX 3090, 252-254 on four RTX 3080 (b7500), 451-456 on RTX 4090 (issue 15860), 705-712
# and 749 on RTX PRO 6000 (breakdowns of loads of 58 and 82 GB, issue 27953).
_CUDA_CONTEXTS: Final[Mapping[tuple[int, int], Triple]] = MappingProxyType(
    {(8, 6): _mib(240, 305, 460), (8, 9): _mib(430, 455, 560), (12, 0): _mib(680, 712, 800)}
)
_ANY_GPU: Final[Mapping[str, Backend]] = MappingProxyType(
    {"nvidia": "cuda", "amd": "vulkan", "intel": "vulkan", "apple": "metal", "other": "vulkan"}
)

_VISIBLE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "cuda": "CUDA_VISIBLE_DEVICES={}",
        "rocm": "HIP_VISIBLE_DEVICES={}",
        "xpu": "ZE_AFFINITY_MASK={}",
    }
)

CONTEXT: Final = Policy(
    name="context",
    allocation="allocate",
    formats=("gguf",),
    ladder=GGUF_LADDER,
    default_quantization="Q4_K_M",
    backends=_ANY_GPU,
    runtime=_LLAMACPP_RUNTIME,
    contexts=_CUDA_CONTEXTS,
    margin=1024 * MIB,  # --fit-target
    more_cache_types=("f32", "bf16", "q5_1", "q5_0", "q4_1", "iq4_nl"),
    embedding_ubatch=2048,  # the most that `-ub` gives without `-b`
    offload=True,
    images="file",
    command="llama-server {model}",
    names="gguf",
    file_option="-m {}",
    pair_option="-m {} --mmproj {}",
    repo_option="-hf {name}:{quantization}",
    exact_option="-hf {name} -hff {file}",
    labels={"MXFP4_MOE": "MXFP4"},  # ggml-org/gpt-oss-20b-GGUF: gpt-oss-20b-mxfp4.gguf
    flags={
        "context": "-c {}",
        "users": "-np {}",
        "cache_type": "-ctk {0} -ctv {0}",
        "all_layers": "-ngl {}",
        "layers": "-ngl {}",
        "host_experts": "--n-cpu-moe {}",
        "devices": "-dev {}",
        "ubatch": "-ub {}",
        "text_only": "--no-mmproj",
        "host_projector": "--no-mmproj-offload",
        "batch": "-b {0} -ub {0}",
        "embeddings": "--embeddings",
        "rerank": "--reranking",
    },
)
"""llama.cpp (build b11434): the default `--fit-target` leaves 1024 MiB on each device."""

TIERED: Final = Policy(
    name="tiered-context",
    allocation="allocate",
    formats=("gguf",),
    ladder=GGUF_LADDER,
    default_quantization="Q4_K_M",
    backends=_ANY_GPU,
    # The 457 MiB (512 on Metal) that Ollama keeps per GPU are for the runtime context.
    runtime={**_LLAMACPP_RUNTIME, "cuda": _mib(300, 457, 750), "metal": _mib(64, 512, 512)},
    contexts=_CUDA_CONTEXTS,
    embedding_ubatch=2048,  # DefaultEmbeddingNumBatch
    offload=True,
    images="file",
    always_sees=True,
    projector_follows=True,
    context_tiers=((47 * GIB, 262144), (23 * GIB, 32768), (0, 4096)),
    # The environment is the server's; `ollama run` takes names, and a file only by a Modelfile.
    command="ollama serve  # then: {model}",
    names="ollama",
    file_option="echo FROM {} | ollama create NAME -f /dev/stdin && ollama run NAME",
    pair_option="printf 'FROM %s\\n' {} {} | ollama create NAME -f /dev/stdin && ollama run NAME",
    repo_option="ollama run {name}",
    tags=True,
    other_option="ollama run hf.co/{name}:{quantization}",
    exact_option="ollama run hf.co/{name}:{tag}",
    flags={
        "context_each": "OLLAMA_CONTEXT_LENGTH={}",
        "users": "OLLAMA_NUM_PARALLEL={}",
        "cache_type": "OLLAMA_KV_CACHE_TYPE={}",
        "layers": "(PARAMETER num_gpu {})",
    },
)
"""Ollama (August 2026): the context depends on all GPU memory together unless one is set."""

PAGED: Final = Policy(
    name="paged-pool",
    allocation="pool",
    formats=("safetensors",),
    ladder=TENSOR_LADDER,
    default_quantization="bf16",
    backends={"nvidia": "cuda", "amd": "rocm", "intel": "xpu"},
    cpu_note="the CPU build is a different wheel",
    images="checkpoint",
    kept_images=True,
    runtime={
        "cuda": _mib(120, 140, 400),
        "rocm": _mib(120, 300, 600),
        "xpu": _mib(120, 300, 600),
        "cpu": _mib(400, 700, 1200),
    },
    utilization=0.92,
    split="tensor",
    cache_types=("auto", "fp8"),
    more_cache_types=(
        "bfloat16",
        "float16",
        "fp8_e4m3",
        "fp8_e5m2",
        "fp8_inc",
        "int8",
        "int4",
        "nvfp4",
    ),
    # llm-d-benchmark, empirical vLLM memory: 38.4-39.6 B per row and entry; FlashInfer needs less.
    sampler_bytes=(12.0, 38.5, 38.5),
    # EngineArgs.get_batch_defaults: large batches make an A100 slower (its pull request 17885).
    rows=((160 * GIB, 16384, 1024, ""), (70 * GIB, 8192, 1024, "a100"), (0, 2048, 256, "")),
    host_rows=(2048, 128),
    pipelines=True,
    visible=_VISIBLE,
    graphs=_mib(0, 150, 512),
    graphs_moe=_mib(100, 512, 1100),
    parallel_overhead=_mib(340, 430, 600),
    expert_padding={"mxfp4": (256, 128)},
    whole_shards=True,
    compute_capability=(7, 0),
    architectures={
        "amd": ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1101", "gfx1200", "gfx1201", "gfx1151")
    },
    block_tokens={"cpu": 128},
    startup=(20.0, 60.0, 120.0),
    command="vllm serve {model}",
    quantize={"fp8": "--quantization fp8"},
    flags={
        "context": "--max-model-len {}",
        "sequences": "--max-num-seqs {}",
        "batched": "--max-num-batched-tokens {}",
        "revision": "--revision {}",
        "cache_type": "--kv-cache-dtype {}",
        "tensor": "--tensor-parallel-size {}",
        "pipeline": "--pipeline-parallel-size {}",
        "utilization": "--gpu-memory-utilization {}",
        "text_only": "--language-model-only",
    },
)
"""vLLM (0.32): 92 per cent of each GPU; profiling run and CUDA graphs counted inside."""

WARMED: Final = Policy(
    name="warmed-pool",
    allocation="pool",
    formats=("safetensors",),
    ladder=TENSOR_LADDER,
    default_quantization="bf16",
    backends={"nvidia": "cuda", "amd": "rocm", "intel": "xpu"},
    cpu=False,
    images="checkpoint",
    always_sees=True,
    runtime={"cuda": _mib(300, 500, 800), "rocm": _mib(300, 500, 900), "xpu": _mib(300, 500, 900)},
    utilization=0.90,  # TGI_WIGGLE_ROOM, of all memory and not of what is left
    split="tensor",
    cache_types=("auto", "fp8_e5m2"),
    more_cache_types=("fp8_e4m3fn",),
    sampler_bytes=(4.0, 12.0, 24.0),
    rows=((0, 4096, 128, ""),),
    replicates_heads=False,  # flash_llama_modeling: num_key_value_heads % num_shards == 0
    visible=_VISIBLE,
    graphs=_mib(100, 300, 800),
    graphs_moe=_mib(100, 500, 1100),
    parallel_overhead=_mib(340, 430, 600),
    compute_capability=(7, 0),
    startup=(15.0, 40.0, 120.0),
    command="text-generation-launcher --model-id {model}",
    quantize={"fp8": "--quantize fp8", "bnb-nf4": "--quantize bitsandbytes-nf4"},
    flags={
        "context": "--max-total-tokens {}",
        "sequences": "--max-batch-size {}",
        "admitted": "--max-concurrent-requests {}",
        "revision": "--revision {}",
        "cache_type": "--kv-cache-dtype {}",
        "tensor": "--num-shard {}",
        "utilization": "--cuda-memory-fraction {}",
    },
)
"""TGI (3.3, `get_free_memory`): after a warm-up batch all but a tenth of the GPU becomes cache."""

ALL_LOGITS: Final = frozenset(
    {"qwen2", "qwen2moe", "qwen3", "qwen3moe", "qwen3next", "qwen35", "qwen35moe", "olmo2"}
)
"""Architectures for which MLC's planned buffers hold the logits of a whole chunk (web-llm's list of
sizes: 594 MiB of 798 for Qwen2.5-7B; none for Llama, Mistral, Gemma, Phi-3.5)."""

COMPILED: Final = Policy(
    name="compiled-pool",
    allocation="pool",
    formats=("mlc",),
    ladder=MLC_LADDER,
    default_quantization="q4f16_1",
    backends={"nvidia": "cuda", "amd": "vulkan", "intel": "vulkan", "apple": "metal"},
    cpu=False,
    runtime=_LLAMACPP_RUNTIME,
    utilization=0.85,
    split="tensor",
    cache_types=("auto",),
    # mlc_llm/model/qwen3_vl; gemma4_loader leaves the vision tower out, and the others have none.
    towers=frozenset({"qwen2vl", "qwen3vl"}),
    always_sees=True,
    sampler_bytes=(16.125, 16.125, 16.125),
    rows=((0, 8192, 4, ""),),
    replicates_heads=False,  # its models assert that num_key_value_heads divides
    visible={"cuda": "CUDA_VISIBLE_DEVICES={}", "vulkan": "--device vulkan:{}"},
    # Those with logits of every token of a chunk would need several GB at 8192.
    warm_tokens=dict.fromkeys(ALL_LOGITS, 2048),
    token_limit={"metal": 32768},
    startup=(2.0, 8.0, 60.0),
    command="mlc_llm serve {model}",
    names="mlc",
    repo_option="HF://{name}",
    made_by="`mlc_llm convert_weight {folder} --quantization {label} -o DIR`, `mlc_llm gen_config "
    "{folder} --quantization {label} --conv-template NAME -o DIR`",
    together='--overrides "{}"',
    # `local`: all sequences share the tokens of one, at most 8192. `server` fills the share of the
    # device, but holds logits of as many sequences as were compiled (128) unless told.
    modest=8192,
    flags={
        "context": "context_window_size={}",
        "sequences": "max_num_sequence={}",
        "serves_many": "--mode server",
        "tensor": "tensor_parallel_shards={}",
        "utilization": "gpu_memory_utilization={}",
    },
)
"""MLC LLM (cpp/serve/config.cc): 85 per cent of the device; on Metal at most 32768 tokens over all
sequences."""

DEPLOYED: Final = replace(
    PAGED,
    name="deployed-pool",
    command='python -c "from ray import serve; '
    "from ray.serve.llm import LLMConfig, build_openai_app; "
    "serve.run(build_openai_app(dict(llm_configs=[LLMConfig("
    "model_loading_config=dict(model_id='{model}'), engine_kwargs=dict({settings}))])), "
    'blocking=True)"',
    quantize={"fp8": "quantization='fp8'"},
    flags={
        "context": "max_model_len={}",
        "sequences": "max_num_seqs={}",
        "batched": "max_num_batched_tokens={}",
        "revision": "revision='{}'",
        "cache_type": "kv_cache_dtype='{}'",
        "tensor": "tensor_parallel_size={}",
        "pipeline": "pipeline_parallel_size={}",
        "utilization": "gpu_memory_utilization={}",
        "text_only": "language_model_only=True",
    },
)
"""Ray Serve LLM, which runs vLLM: its settings are in the program that deploys it."""

UNIFIED: Final = replace(
    CONTEXT,
    name="unified-context",
    formats=("mlx", "safetensors"),
    ladder=("bf16", "mlx-8bit", "mlx-6bit", "mlx-4bit", "mlx-3bit"),
    default_quantization="mlx-4bit",
    backends={"apple": "metal"},
    cpu=False,
    offload=False,
    images="none",
    names="hf",
    flags={},
    command="",
    notes=(
        "sized by the rules of llama.cpp on Metal, with weights in MLX's formats; enginekit knows "
        "no command for it",
    ),
)
"""mlx-lm: Apple's GPUs only. Nobody has measured its memory here."""

POLICIES: Final[Mapping[str, Policy]] = MappingProxyType(
    {
        policy.name: policy
        for policy in (CONTEXT, TIERED, PAGED, WARMED, COMPILED, DEPLOYED, UNIFIED)
    }
)
"""By the name that `EngineProfile.sizing` holds."""

_BY_MEMORY: Final[Mapping[str, tuple[Policy, str]]] = MappingProxyType(
    {
        "file": (CONTEXT, "llama.cpp"),
        "grow": (CONTEXT, "llama.cpp"),
        "preallocate": (PAGED, "vLLM"),
    }
)


def policy_of(profile: EngineProfile) -> Policy:
    """The policy that a profile names, or the rules that its `memory` implies, without a command."""
    found = POLICIES.get(profile.sizing)
    return found if found is not None else _borrowed(profile.memory, profile.title)


@cache
def _borrowed(memory: str, title: str) -> Policy:
    """Another engine's arithmetic: its command and flags would start that engine."""
    rules, of = _BY_MEMORY[memory]
    note = f"sized by the rules of {of}; enginekit knows no command of {title}"
    return replace(rules, command="", flags={}, notes=(note,))
