"""How a command names the very GGUF file of a repository that a plan was made for."""

from __future__ import annotations

import re
from typing import Final

from enginekit.facts.model import ModelSpec
from enginekit.sizing.policy import Policy
from enginekit.sizing.quoting import quoted

_PART: Final = re.compile(r"-\d{5}-of-\d{5}$")
_TAG: Final = re.compile(
    r"[-.]((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|BF16|F16|F32|MXFP4\w*|NVFP4\w*))$", re.IGNORECASE
)


def base(model: ModelSpec) -> str:
    """The name of the file that was looked at, without folders."""
    return model.names.gguf_file.rsplit("/", 1)[-1]


def looked_at(policy: Policy, model: ModelSpec, label: str) -> bool:
    """Whether the plan is for the file of the repository that was looked at."""
    names = model.names
    loads = "gguf" in policy.formats and policy.exact_option
    return bool(loads and names.gguf and names.gguf_file and label == model.quantization)


def exact(policy: Policy, model: ModelSpec, label: str) -> str:
    """The file as the engine takes it: by a tag that means it, else by its name.

    A file of another revision is one to bring instead: these engines take the main one only.
    """
    names = model.names
    found = _TAG.search(_PART.sub("", base(model).removesuffix(".gguf")))
    tag = found[1] if found else base(model)
    # llama.cpp takes the first file that has the tag in its path: one of a folder, or a mix that
    # only sounds like it, is asked for by its name.
    if policy.names == "gguf" and "/" not in names.gguf_file and tag.upper() == label.upper():
        return policy.repo_option.format(name=names.gguf, quantization=label)
    return policy.exact_option.format(
        name=names.gguf, file=quoted(names.gguf_file), tag=quoted(tag)
    )


def said(policy: Policy, model: ModelSpec, label: str) -> str:
    """The note about a file of another revision; "" for the main one."""
    names = model.names
    if not names.revision or not looked_at(policy, model, label):
        return ""
    return (
        f"the command's engine loads the main revision only; first: hf download {names.gguf} "
        f"{quoted(names.gguf_file)} --revision {quoted(names.revision)}"
    )
