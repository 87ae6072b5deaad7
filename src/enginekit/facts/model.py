"""What is known of a model: frozen nouns that sizing and selection compute with.

A `ModelSpec` is the same shape whether it came from a GGUF header, safetensors headers with a
config.json, an Ollama `/api/show` answer or a catalog name. What differs is how much of it is
exact, and `provenance` says so field by field. All sizes are bytes, all dimensions elements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

AttentionKind = Literal["full", "sliding", "chunked", "mla", "shared", "none", "unknown"]
"""How one layer keeps its past.

`full`: a cell per token (MHA, GQA and MQA differ only in `kv_heads`). `sliding`: the last `window`
tokens. `chunked`: at most `window` tokens (Llama 4). `mla`: one latent row per token, no V.
`shared`: reuses an earlier layer's cache. `none`: keeps nothing per token. `unknown`: not to be
guessed.
"""

RecurrentKind = Literal["mamba1", "mamba2", "gdn", "rwkv", "shortconv", "kda", "lightning"]
"""`gdn` is the gated delta net of Qwen3-Next and Qwen3.5; `kda` Kimi delta attention."""

Confidence = Literal["exact", "derived", "catalog", "guess"]
"""`exact`: read from the file; `derived`: arithmetic on exact values; `catalog`: our table;
`guess`: a default of the architecture that the source does not state."""

FileFormat = Literal["gguf", "safetensors", "mlx", "mlc", "pytorch", "unknown"]

Role = Literal[
    "embedding",
    "layer_embedding",
    "output",
    "attention",
    "recurrent",
    "ffn",
    "experts",
    "shared_experts",
    "router",
    "norm",
    "mtp",
    "projector",
    "other",
]
"""What a weight is for. `layer_embedding` is the per-layer table of Gemma 3n and Gemma 4 E-models,
a row look-up that may stay in host memory; `experts` are the routed ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where one value came from, and how far to trust it."""

    source: str
    """A file and key, a URL, or `catalog`."""
    confidence: Confidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One block of the network. A block may hold attention and recurrent state at once (Falcon-H1)."""

    attention: AttentionKind
    heads: int = 0
    """Query heads; 0 without attention."""
    kv_heads: int = 0
    """Heads whose K and V are kept; 1 for MQA and MLA, 0 without a cache of its own. An encoder
    (kind `none`) projects this many and keeps nothing."""
    key_dim: int = 0
    """Cached elements of K per kv head; for MLA `kv_lora_rank + rope_dim`."""
    value_dim: int = 0
    """Cached elements of V per kv head; 0 for MLA."""
    window: int = 0
    """Tokens that a sliding or chunked layer can see; 0 for every other kind."""
    indexer_dim: int = 0
    """Extra key elements per token of a sparse-attention indexer (DeepSeek-V3.2, GLM-5)."""
    recurrent: bool = False
    """Whether the layer holds `ModelSpec.recurrent` state, a fixed cost per sequence."""
    ffn: int = 0
    """Width of the dense feed-forward; 0 where there is none."""
    moe: bool = False
    """Whether the layer has routed experts (`ModelSpec.experts`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture of experts: what each MoE layer holds."""

    total: int
    used: int
    """Experts per token."""
    ffn: int
    """Width of one routed expert."""
    shared: int = 0
    """Experts that every token uses."""
    shared_ffn: int = 0
    """Total width of the shared experts (all of them together)."""
    latent: int = 0
    """Width the experts work in when it is not `hidden` (Nemotron-3 Super); 0 otherwise."""
    gated: bool = True
    """Whether an expert has a gate matrix beside up and down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mla:
    """Multi-head latent attention: the dimensions of the latent and of what it unfolds to."""

    kv_lora_rank: int
    rope_dim: int
    q_lora_rank: int = 0
    nope_dim: int = 128
    value_dim: int = 128

    @property
    def cached(self) -> int:
        """Elements cached per token and layer (576 for DeepSeek-V3)."""
        return self.kv_lora_rank + self.rope_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrent:
    """State of one recurrent layer for one sequence; the same size at every context length."""

    kind: RecurrentKind
    conv_elements: int
    """Elements of the convolution (or token-shift) state per sequence and layer."""
    state_elements: int
    """Elements of the recurrent state per sequence and layer."""
    conv: int = 0
    inner: int = 0
    state: int = 0
    groups: int = 0
    heads: int = 0
    """Time-step rank, Mamba-2 heads or GDN value heads."""

    @property
    def bytes_f32(self) -> int:
        """State bytes of one layer and sequence in F32, what llama.cpp stores."""
        return 4 * (self.conv_elements + self.state_elements)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightGroup:
    """One tensor, or tensors of the same layer, role and type taken together."""

    name: str
    role: Role
    type: str
    """Storage type: a ggml name (`Q4_K`) or a safetensors one (`BF16`, `F8_E4M3`, `I32`)."""
    elements: int
    """Stored elements; packed formats hold several weights in one."""
    bytes: int
    layer: int | None = None
    """Block number; None outside the blocks."""
    shape: tuple[int, ...] = ()
    """Row length first, as ggml counts; empty for a group of several tensors."""
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What the model was trained to do; None where the source does not say."""

    tools: bool | None = None
    vision: bool | None = None
    audio: bool | None = None
    thinking: bool | None = None
    embedding: bool | None = None
    rerank: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelNames:
    """The same model under the names that each ecosystem uses; empty where unknown."""

    catalog: str = ""
    hf: str = ""
    hf_quantization: str = ""
    """What that repository holds; empty: the native format, or 16 bits."""
    gguf: str = ""
    gguf_labels: tuple[str, ...] = ()
    """What that repository has, fewest bits first, where it is known and not the usual row of files."""
    gguf_file: str = ""
    """The file of that repository that was looked at, with its folder."""
    revision: str = ""
    """Branch, tag or commit that was looked at; empty: the main one."""
    ollama: str = ""
    ollama_quantization: str = ""
    """What that tag holds; empty: Q4_K_M, or the native format where GGUF files keep it."""
    mlc: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Everything that decides how much memory and work a model needs.

    Two specs with the same fields are equal; hashing is cheap, so specs serve as cache keys.
    """

    name: str
    architecture: str
    """llama.cpp's name of it (`qwen3moe`, `deepseek2`), whatever the source was."""
    layers: tuple[Layer, ...]
    """The blocks that always run, multi-token-prediction blocks not among them."""
    hidden: int
    vocab: int
    context_length: int
    """Trained context in tokens; 0 if unknown."""
    known_layout: bool = True
    """False: the attention layout is not one that we know. Sizing then gives a range and the
    words "unknown attention layout", never a precise number."""

    params_total: int = 0
    """Weights in the text model, projector and MTP not among them; 0 if unknown."""
    params_active: int = 0
    """Weights that one token is multiplied with; equals `params_total` for dense models."""
    experts: Experts | None = None
    mla: Mla | None = None
    recurrent: Recurrent | None = None
    per_layer_embedding: int = 0
    """Width of the per-layer embedding (Gemma 3n, Gemma 4 E-models: 256); 0 without."""
    tied_embeddings: bool = False
    causal: bool = True
    """False for encoders, which keep no cache at all."""
    mtp_layers: int = 0
    """Extra multi-token-prediction blocks in the checkpoint."""

    format: FileFormat = "unknown"
    quantization: str = ""
    """The source's label (`Q4_K_M`, `fp8-block`, `awq-int4-g128`, `BF16`); empty if none is chosen."""
    native_format: str = ""
    """What its publisher ships where that is not 16 bits (`fp8-block`, `mxfp4`); no wider
    checkpoint exists."""
    weights: tuple[WeightGroup, ...] = ()
    """From real headers; empty when only a name or config.json was available."""
    weight_bytes: int = 0
    """Tensor bytes of one loadable copy, MTP and projector not among them; 0 if not known."""
    file_bytes: int = 0
    """Bytes on disk of one loadable copy, metadata and padding included; 0 if not known."""
    mtp_bytes: int = 0
    projector_bytes: int = 0
    """Bytes of the vision or audio part that loads beside the text model."""
    projector_file: str = ""
    """Where that part is a file beside a local model: its path."""
    projector_files: tuple[tuple[str, int], ...] = ()
    """Projectors in the GGUF repository, in the order of its listing: label and tensor bytes. The
    label `none` says that there is none for a model that sees; empty: nothing is known of them."""
    tower_params: int = 0
    """Parameters of that part in the publisher's checkpoint, where no file has been seen."""

    names: ModelNames = field(default_factory=ModelNames)
    family: str = ""
    license: str = ""
    capabilities: Capabilities = field(default_factory=Capabilities)
    chat_template: bool | None = None
    """Whether the source carries one; None if the source cannot say."""
    vllm_tool_parser: str = ""
    notes: tuple[str, ...] = ()
    """Sentences that a plan should show: doubts about a value, a better choice of file."""
    provenance: Mapping[str, Origin] = field(default_factory=dict)
    """Field name to where its value came from. A field that is not listed has its default."""

    def __hash__(self) -> int:
        return hash((self.name, self.architecture, self.quantization, self.weight_bytes))

    @property
    def n_layers(self) -> int:
        """Number of blocks that always run."""
        return len(self.layers)

    @property
    def heads(self) -> int:
        """Query heads of the widest layer."""
        return max((layer.heads for layer in self.layers), default=0)

    @property
    def kv_heads(self) -> int:
        """KV heads of the layer that has most: what tensor parallelism has to divide."""
        return max((layer.kv_heads for layer in self.layers), default=0)

    @property
    def ffn(self) -> int:
        """Width of the widest dense feed-forward; 0 if every layer is MoE or has none."""
        return max((layer.ffn for layer in self.layers), default=0)

    @property
    def cached_layers(self) -> int:
        """Layers with a cache of their own."""
        return sum(1 for layer in self.layers if layer.kv_heads and layer.attention != "none")

    @property
    def recurrent_layers(self) -> int:
        """Layers with state per sequence."""
        return sum(1 for layer in self.layers if layer.recurrent)

    @property
    def moe_layers(self) -> int:
        """Layers with routed experts."""
        return sum(1 for layer in self.layers if layer.moe)

    def origin(self, field_name: str) -> Origin | None:
        """Where the value of a field came from, if the source said."""
        return self.provenance.get(field_name)
