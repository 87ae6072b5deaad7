"""`enginekit pull`: fetch a model into the cache, whatever its size."""

from __future__ import annotations

import sys

from enginekit.cli.output import ProgressDisplay
from enginekit.kit import embedded


def pull(model: str = embedded.DEFAULT_MODEL, /) -> int:
    """Fetch a model for the embedded engine and print where it lies.

    Parameters
    ----------
    model
        A catalog name (smollm2:135m), hf://owner/repo/file.gguf, or a GGUF path.
    """
    with ProgressDisplay() as progress:
        local = embedded.fetch(model, progress=progress, allow_large=True)
    sys.stderr.write(f"{model}: {local.size / 1e6:.0f} MB, {local.source}\n")
    sys.stdout.write(f"{local.path}\n")
    return 0
