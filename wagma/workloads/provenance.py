"""What the bits of a training run depend on, beside its scenario: the libraries that compute, how many threads, which instructions."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from wagma.workloads.registry import REGISTRY


def environment(workload: str, device: str = "cpu") -> dict[str, str]:
    """Name -> value, of this process: two runs that differ in none of these compute the same bits. Raises as `require` does.

    python: the workload text reads its sources. threads: torch's, since their number decides in which order a kernel adds up.
    instructions: what torch's kernels were chosen for. device, cuda: only of what is trained on a GPU.
    """
    import torch

    found = {
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device != "cpu":
        found |= {"device": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
    packages = [
        "numpy",
        *(name for module, name in REGISTRY[workload].needs.items() if module != "torch" and find_spec(module)),
    ]
    return found | {name: known for name in packages if (known := _version(name)) is not None}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
