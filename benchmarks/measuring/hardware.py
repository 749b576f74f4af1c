"""What a benchmark ran on: the `hardware` and `versions` of its JSON."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from plumline.stage import num_cores


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, and the accelerator's name (None: none)."""
    import torch

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": model, "cores": num_cores(), "accelerator": accelerator}


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of the packages named."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
