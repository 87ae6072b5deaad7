"""Write scripted weights: a model whose answers are decided beforehand, for real engines.

    python scripts/make_scripted_model.py OUT_DIR [--hf]

Writes OUT_DIR/scripted.gguf and, with --hf, OUT_DIR/scripted/ (safetensors, for vLLM and Ray
Serve). Needs numpy and gguf, for --hf also tokenizers. What it answers to what stands in
tests/support/scripted.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.scripted import script, write_gguf, write_hf


def main() -> None:
    parser = argparse.ArgumentParser(description="write a model whose answers are scripted")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--hf", action="store_true", help="also a Hugging Face folder")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    made = script()
    print(write_gguf(options.out / "scripted.gguf", made))
    if options.hf:
        print(write_hf(options.out / "scripted", made))


if __name__ == "__main__":
    main()
