"""SmolLM2-135M-Instruct as a Hugging Face folder, for vLLM and Ray Serve: the very weights of
`smollm2:135m`, taken out of its GGUF.

    python scripts/make_smollm2_safetensors.py [--out DIR]

Needs torch, transformers, accelerate and gguf. Writes about 270 MB (bfloat16) once into enginekit's
cache folder and prints where; later runs find it there. The weights are 4-bit ones unpacked, so this
is not the original checkpoint, but the same model that the embedded engine runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from enginekit.catalog._lock import FileLock
from enginekit.catalog.sources import cache_dir, resolve

MODEL = "smollm2:135m"
DONE = "config.json"


def convert(source: Path, target: Path) -> None:
    """Unpack a GGUF file into `target`, which appears whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    part = Path(tempfile.mkdtemp(dir=target.parent, prefix=target.name + "."))
    try:
        folder, file = str(source.parent), source.name
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.bfloat16)
        # It was quantized and is no longer; saving refuses, and servers misread, the mark.
        for owner in (model, model.config):
            for name in ("quantization_config", "hf_quantizer", "is_quantized"):
                if hasattr(owner, name):
                    delattr(owner, name)
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        os.chmod(part, 0o755)
        os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="make safetensors of smollm2:135m")
    parser.add_argument("--out", type=Path, help="folder to write; default: enginekit's cache")
    options = parser.parse_args()
    local = resolve(MODEL)
    target = options.out or cache_dir() / "converted" / f"{(local.sha256 or '')[:16]}-bf16"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(target.name + ".lock")):
        if not (target / DONE).is_file():
            print(f"converting {local.path} …", file=sys.stderr)
            convert(local.path, target)
    print(target)


if __name__ == "__main__":
    main()
