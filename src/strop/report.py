"""What every bench and eval prints and writes: figures beside the settings, versions and machine they were taken with."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from strop.errors import ConfigError

PACKAGES = ("strop", "torch", "transformers", "numpy", "fastapi", "uvicorn", "openai", "triton", "vllm")
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")


def versions() -> dict[str, str]:
    """The installed packages that figures depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """`cores` counts the processors this process may use."""

    system: str
    processor: str
    cores: int
    features: tuple[str, ...]
    memory_gb: float


def machine() -> Machine:
    """What is known of this machine; fields that the system does not tell are empty or zero."""
    cpu = _cpu_facts(Path("/proc/cpuinfo"))
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        processor=cpu.get("model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        features=tuple(feature for feature in CPU_FEATURES if feature in flags),
        memory_gb=round(_memory_bytes() / 2**30, 1),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run's figures: rows of equal keys, in the order they are to be read."""

    title: str
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=versions)
    machine: Machine = field(default_factory=machine)

    def show(self, console: Console) -> None:
        """Print the rows as a table, then the notes and what the figures were taken with."""
        table = Table(title=self.title, box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
        for name in self.rows[0] if self.rows else ():
            table.add_column(name, justify="right" if _is_number(self.rows[0][name]) else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(_cell(value)) for value in row.values()))
        console.print(table)
        for note in self.notes:
            console.print(note, markup=False, highlight=False)
        console.print(f"{self.machine.processor}, {self.machine.cores} cores; {_listed(self.versions)}", style="dim")

    def write(self, path: Path) -> None:
        try:
            path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write the report to {path}: {error.strerror}") from error


def _cpu_facts(path: Path) -> dict[str, str]:
    """The first processor's entries of a cpuinfo file; empty where there is none."""
    try:
        first = path.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def _listed(facts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())
