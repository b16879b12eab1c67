"""Compiles `csrc/<name>.cpp` into a shared object on first use and loads it: one plain C ABI file, no torch headers.

Objects live in the cache folder, named by hashes of what shapes them (sources and flags; compiler and OpenMP runtime), one
per instruction set; the best set this processor has is used. `python -m strop.kernels.build` builds all of them ahead, so
that an image needs no compiler when it runs.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch  # noqa: F401 - loads the OpenMP runtime that the objects link
from filelock import FileLock

from strop.errors import KernelError

SOURCES = Path(__file__).parent / "csrc"
# No -ffast-math: it would let the compiler reorder sums, and switch denormals off in every thread that loads the object.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=off", "-fno-math-errno")


@dataclass(frozen=True, slots=True)
class Isa:
    """An instruction set: the processor flags it needs (as Linux spells them) and the compiler flags that use it."""

    name: str
    needs: frozenset[str]
    flags: tuple[str, ...]


_AVX2 = Isa("avx2", frozenset({"avx2", "fma", "f16c", "bmi2"}), ("-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2"))
_AVX512 = Isa(
    "avx512",
    _AVX2.needs | {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    (*_AVX2.flags, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
)
_AVX512_BF16 = Isa("avx512_bf16", _AVX512.needs | {"avx512_bf16"}, (*_AVX512.flags, "-mavx512bf16"))
ISAS = (_AVX512_BF16, _AVX512, _AVX2)


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded shared object, or why there is none."""

    handle: ctypes.CDLL | None
    missing: str | None

    def function(self, name: str, *argtypes: Any, returns: Any = None) -> Any:
        """The C function `name`, typed. Most return nothing: results go where the arguments point."""
        if self.handle is None:
            raise KernelError(f"The C function {name} is not available: {self.missing}.")
        function = getattr(self.handle, name)
        function.argtypes = argtypes
        function.restype = returns
        return function


@functools.cache
def load(name: str) -> Library:
    """The library of `csrc/<name>.cpp` for this processor, built if the cache lacks it. Never raises: see `missing`.

    `STROP_ISA` names an instruction set to use instead of the best one, such as `avx2`.
    """
    isa = best_isa(cpu_flags(), os.environ.get("STROP_ISA"))
    if isa is None:
        return Library(None, "this processor has no AVX2, or not the instruction set that STROP_ISA names")
    source, cache, compiler = SOURCES / f"{name}.cpp", cache_folder(), find_compiler()
    try:
        path = compile_source(source, isa, compiler, cache) if compiler else find_prebuilt(source, isa, cache)
        if path is None:
            return Library(None, "no C++ compiler was found (g++, c++ or clang++), and no object built ahead")
        return Library(ctypes.CDLL(str(path)), None)
    except (KernelError, OSError) as error:
        return Library(None, str(error))


def compile_source(source: Path, isa: Isa, compiler: str, cache: Path) -> Path:
    """The path of the shared object, compiled into `cache` unless it is there. Raises `KernelError` if that fails."""
    openmp = _openmp(compiler)
    builder = hashlib.sha256(" ".join([_version(compiler), *openmp]).encode()).hexdigest()[:8]
    target = cache / f"{_stem(source, isa)}-{builder}.so"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")), tempfile.TemporaryDirectory(dir=cache) as folder:
        if not target.exists():
            built = Path(folder) / target.name
            _run([compiler, *FLAGS, *isa.flags, str(source), *openmp, "-o", str(built)])
            built.replace(target)
    return target


def find_prebuilt(source: Path, isa: Isa, cache: Path) -> Path | None:
    """An object of this very source and these flags that some compiler left in `cache`."""
    return next(iter(sorted(cache.glob(f"{_stem(source, isa)}-*.so"))), None)


def _stem(source: Path, isa: Isa) -> str:
    digest = hashlib.sha256(" ".join([*FLAGS, *isa.flags]).encode())
    for file in [source, *sorted(source.parent.glob("*.h"))]:
        digest.update(file.read_bytes())
    return f"{source.stem}-{isa.name}-{digest.hexdigest()[:12]}"


def _openmp(compiler: str) -> list[str]:
    """Link the OpenMP runtime that torch loaded: a second one would bring a second thread pool and fight over the cores."""
    if "clang" in _version(compiler):
        return []
    maps = Path("/proc/self/maps")
    loaded = re.findall(r"(/\S*/lib(?:gomp|iomp5)\S*)", maps.read_text()) if maps.exists() else []
    return ["-Wl,--as-needed", *loaded[:1]]


@functools.cache
def _version(compiler: str) -> str:
    return _run([compiler, "--version"])


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    except (subprocess.SubprocessError, OSError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        raise KernelError(f"{Path(command[0]).name} failed: {str(detail).strip()[:2000]}") from error


def find_compiler() -> str | None:
    """$CXX, or the first of g++, c++ and clang++ on the path."""
    names = (os.environ.get("CXX"), "g++", "c++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def cpu_flags() -> frozenset[str]:
    """The flags of this processor as Linux lists them; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not info.exists():
        return frozenset()
    found = re.search(r"^flags\s*:(.*)$", info.read_text(), re.MULTILINE)
    return frozenset(found.group(1).split()) if found else frozenset()


def best_isa(flags: frozenset[str], name: str | None = None) -> Isa | None:
    """The best instruction set that these flags allow, or the one called `name` if they allow it."""
    return next((isa for isa in ISAS if isa.needs <= flags and name in (None, isa.name)), None)


def cache_folder() -> Path:
    """`$STROP_CACHE/kernels`, by default `$XDG_CACHE_HOME/strop/kernels`."""
    root = os.environ.get("STROP_CACHE")
    if root:
        return Path(root) / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "strop" / "kernels"


def prebuild() -> list[Path]:
    """Compile every source for every instruction set, for images that will run on processors not known yet."""
    compiler = find_compiler()
    if compiler is None:
        raise KernelError("No C++ compiler was found (g++, c++ or clang++); install one or set CXX.")
    return [compile_source(source, isa, compiler, cache_folder()) for source in sorted(SOURCES.glob("*.cpp")) for isa in ISAS]


if __name__ == "__main__":
    for path in prebuild():
        sys.stdout.write(f"{path}\n")
