"""Building: the cache key, the failures in words, and the choice of the instruction set."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from strop.errors import KernelError
from strop.kernels.build import ISAS, Library, best_isa, compile_source, cpu_flags, find_compiler, find_prebuilt, load

COMPILER = find_compiler()
ISA = best_isa(cpu_flags())
needs_compiler = pytest.mark.skipif(COMPILER is None or ISA is None, reason="needs a C++ compiler and AVX2")

SOURCE = """
#include <omp.h>
#include "one.h"
extern "C" void answer(int *out) { *out = ONE + 41; }
extern "C" void threads(int *out) {
#pragma omp parallel num_threads(2)
#pragma omp single
    *out = omp_get_num_threads();
}
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "one.h").write_text("#define ONE 1\n")
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE)
    return path


@needs_compiler
def test_compiles_once_and_again_when_a_header_changes(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = compile_source(source, ISA, COMPILER, cache)
    stamp = first.stat().st_mtime_ns
    assert compile_source(source, ISA, COMPILER, cache) == first
    assert first.stat().st_mtime_ns == stamp
    (source.parent / "one.h").write_text("#define ONE 2\n")
    second = compile_source(source, ISA, COMPILER, cache)
    assert second != first
    assert [_answer(first), _answer(second)] == [42, 43]


def _answer(path: Path) -> int:
    out = ctypes.c_int()
    Library(ctypes.CDLL(str(path)), None).function("answer", ctypes.c_void_p)(ctypes.addressof(out))
    return out.value


@needs_compiler
def test_an_object_built_ahead_serves_where_there_is_no_compiler(source: Path, tmp_path: Path) -> None:
    assert find_prebuilt(source, ISA, tmp_path / "cache") is None
    built = compile_source(source, ISA, COMPILER, tmp_path / "cache")
    assert find_prebuilt(source, ISA, tmp_path / "cache") == built
    (source.parent / "one.h").write_text("#define ONE 2\n")
    assert find_prebuilt(source, ISA, tmp_path / "cache") is None


@needs_compiler
def test_only_the_openmp_runtime_of_torch_is_loaded(source: Path, tmp_path: Path) -> None:
    path = compile_source(source, ISA, COMPILER, tmp_path / "cache")
    out = ctypes.c_int()
    ctypes.CDLL(str(path)).threads(ctypes.byref(out))
    assert out.value == 2
    runtimes = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libgomp" in line}
    assert len(runtimes) <= 1


@needs_compiler
def test_a_compile_error_is_told_in_the_compilers_words(source: Path, tmp_path: Path) -> None:
    source.write_text("#error that is wrong\n")
    with pytest.raises(KernelError, match="that is wrong"):
        compile_source(source, ISA, COMPILER, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.so"))


def test_the_best_instruction_set_is_chosen() -> None:
    assert best_isa(frozenset()) is None
    assert [best_isa(isa.needs) for isa in ISAS] == list(ISAS)
    assert [best_isa(ISAS[0].needs, isa.name) for isa in ISAS] == list(ISAS)
    assert best_isa(ISAS[-1].needs, ISAS[0].name) is None


def test_an_unknown_source_is_missing_with_a_reason() -> None:
    library = load("no_such_source")
    assert library.handle is None
    assert library.missing
    with pytest.raises(KernelError, match="not available"):
        library.function("anything")


def test_without_a_compiler_loading_says_so(tmp_path: Path) -> None:
    code = "from strop.kernels.build import load; print(load('attention').missing)"
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path), "STROP_CACHE": str(tmp_path)}
    run = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.startswith(("no C++ compiler was found", "this processor has no AVX2"))


@needs_compiler
@pytest.mark.slow
def test_prebuild_compiles_every_source_for_every_instruction_set(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "strop.kernels.build"]
    run = subprocess.run(command, env=os.environ | {"STROP_CACHE": str(tmp_path)}, capture_output=True, text=True, check=True)
    built = [Path(line) for line in run.stdout.splitlines()]
    assert built
    assert all(path.exists() for path in built)
    assert len(built) % len(ISAS) == 0
