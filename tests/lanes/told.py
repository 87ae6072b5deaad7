"""How each lane starts its servers, and what is said of them on their cassettes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tests.lanes.environment import RAY, ROOT, VLLM

RAY_APP = ROOT / "tests" / "lanes" / "ray_app.py"


@dataclass(frozen=True)
class Told:
    """What a cassette says of its server."""

    server: str
    version: str
    command: str


def vllm_command(
    python: Path, port: int, name: str, folder: Path, *, parser: bool = True
) -> list[str]:
    """A vLLM server on CPU, small, that chats and, with a parser, calls tools."""
    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes") if parser else ()
    return [*_vllm(python, port, name, folder), "--max-num-seqs", "8", *tools]


def vllm_embed_command(python: Path, port: int, name: str, folder: Path) -> list[str]:
    """A vLLM server on CPU that embeds by a chat model's weights: the last token's state."""
    return [*_vllm(python, port, name, folder), "--runner", "pooling", "--convert", "embed"]


def _vllm(python: Path, port: int, name: str, folder: Path) -> list[str]:
    return [
        *(str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)),
        *("--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)),
        *("--enforce-eager", "--dtype", "float32", "--max-model-len", "8192"),
    ]


def ray_command(python: Path, port: int, models: Mapping[str, Path | str]) -> list[str]:
    """A Ray Serve application of several models; one named `embed…` embeds."""
    named = [f"{name}={folder}" for name, folder in models.items()]
    return [str(python), str(RAY_APP), str(port), *named]


def told(engine: str, suite: str) -> Told:
    """What is said of the lane's server that answers a suite's requests."""
    if engine == "llamacpp":
        embeds = suite == "embeddings"
        how = "2 slots, embedding, SmolLM2" if embeds else "4 slots, --metrics, scripted weights"
        return Told(
            "llama.cpp server",
            f"xllamacpp {metadata.version('xllamacpp')}",
            f"enginekit.launch.embedded, context 2048, {how}",
        )
    python, folder = Path("python"), Path("scripted")
    if engine == "vllm":
        words = (
            vllm_embed_command(python, 8000, "embedder", Path("smollm2"))
            if suite == "embeddings"
            else vllm_command(python, 8000, "scripted", folder)
        )
        return Told("vLLM, CPU", VLLM, " ".join(words))
    names = {"scripted": "scripted", "smollm2": "smollm2", "embedder": "smollm2"}
    words = ["python", "tests/lanes/ray_app.py", *ray_command(python, 8000, names)[2:]]
    return Told("Ray Serve LLM over vLLM, CPU", f"{RAY[0]}, {VLLM}", " ".join(words))
