"""Serve models by Ray Serve LLM on CPU until SIGTERM. Run by the servers' interpreter.

python tests/lanes/ray_app.py PORT NAME=FOLDER [NAME=FOLDER …]

A model named `embed…` embeds by the last token's state; the others chat and call tools.
"""

from __future__ import annotations

import signal
import sys
import threading

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app

CHATS = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
EMBEDS = {"runner": "pooling", "convert": "embed"}


def config(name: str, folder: str) -> LLMConfig:
    return LLMConfig(
        model_loading_config={"model_id": name, "model_source": folder},
        accelerator_config={"kind": "cpu"},
        placement_group_config={"bundle_per_worker": {"CPU": 1}},
        engine_kwargs={
            "max_model_len": 8192,
            "max_num_seqs": 8,
            "enforce_eager": True,
            "dtype": "float32",
            **(EMBEDS if name.startswith("embed") else CHATS),
        },
        deployment_config={"num_replicas": 1},
    )


def main() -> None:
    port, *models = sys.argv[1:]
    stopped = threading.Event()
    # Logical CPUs: what the actors claim, not what the machine has.
    ray.init(num_cpus=12, include_dashboard=False, log_to_driver=True)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    configs = [config(*model.split("=", 1)) for model in models]
    serve.run(build_openai_app({"llm_configs": configs}), blocking=False)
    print("serving", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
