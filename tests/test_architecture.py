"""The shape of the house: which room may import which, and how long a file and a function may grow."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("kernels", "samplers", "guidance", "server", "ui")
FILE_LINES, FUNCTION_LINES = 300, 40

WIRE = ("strop.server.routes", "strop.server.app", "strop.server.run")
"""The outermost layer of the server: it may import all others, and none of them may import it."""
FORBIDDEN = {
    "strop.contracts": ("strop",),
    "strop.errors": ("strop",),
    "strop.kernels": ("strop.samplers", "strop.guidance", "strop.server", "strop.config", "strop.plugins"),
    "strop.samplers": ("strop.guidance", "strop.server", "strop.config", "strop.plugins"),
    "strop.guidance": ("strop.samplers", "strop.server", "strop.config", "strop.plugins"),
    "strop.server.models": ("strop.server",),
    "strop.server.engines": ("strop.server",),
    "strop.server.executors": (*WIRE, "strop.server.wire", "strop.server.house"),
    "strop.server.scheduler": (*WIRE, "strop.server.wire", "strop.server.house"),
    "strop.server.plan": (*WIRE, "strop.server.wire"),
    "strop.server.house": (*WIRE, "strop.server.wire"),
    "strop.server.wire": WIRE,
    "strop.server": ("strop.client", "strop.cli", "strop.commands", "strop.ui"),
    "strop.ui": ("strop.server", "strop.kernels", "strop.samplers", "torch"),
    "strop.client": ("strop.server", "strop.kernels", "strop.samplers", "strop.cli", "torch"),
}
ALLOWED = {
    "strop.contracts": (),
    "strop.errors": (),
    "strop.server.models": ("strop.server.models",),
    "strop.server.engines": ("strop.server.engines", "strop.server.models"),
}
"""Exceptions to a broader ban above."""
HEAVY = ("torch", "transformers", "strop.server", "strop.kernels", "strop.samplers")
LIGHT = ("strop.cli", "strop.client", "strop.commands", "strop.config", "strop.plugins", "strop.report", "strop.testing")
PLUGIN_ROOMS = ("strop.guidance", "strop.samplers")


def modules() -> dict[str, Path]:
    """Every module of the distribution by its name."""
    own = {path: path.relative_to(ROOT / "src") for path in (ROOT / "src" / "strop").glob("*.py")}
    own |= {path: path.relative_to(ROOT / "src") for path in (ROOT / "src" / "strop" / "commands").rglob("*.py")}
    rooms = {path: Path("strop") / path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    return {".".join(name.with_suffix("").parts).removesuffix(".__init__"): path for path, name in {**own, **rooms}.items()}


MODULES = modules()


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what a piece of code imports, type-checking blocks left out."""
    for node in runtime(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" if node.module == "strop" else str(node.module) for alias in node.names)


def runtime(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from runtime(node)


def module_level(tree: ast.Module) -> ast.Module:
    """The module without the bodies of its functions: what runs when it is imported."""

    class Outer(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None: ...

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None: ...

    return ast.fix_missing_locations(Outer().visit(tree))


def parsed(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def test_modules_are_found_in_every_room() -> None:
    for module in ("strop.contracts", "strop.commands.serve", "strop.kernels.registry", "strop.server.models.tokenizer"):
        assert module in MODULES


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_one_way(name: str) -> None:
    for package, banned in FORBIDDEN.items():
        if not within(name, package):
            continue
        for imported in imports(parsed(name)):
            excepted = any(within(imported, each) for each in ALLOWED.get(package, ()))
            assert excepted or not any(within(imported, each) for each in banned), f"{name} must not import {imported}"


def test_a_reversed_arrow_is_seen() -> None:
    tree = ast.parse(
        "def f():\n    from strop.server.app import build_app\nif TYPE_CHECKING:\n    import torch\nfrom strop import ui"
    )
    assert list(imports(tree)) == ["strop.server.app", "strop.ui"]
    assert list(imports(module_level(tree))) == ["strop.ui"]


@pytest.mark.parametrize("name", [name for name in MODULES if any(within(name, each) for each in LIGHT)])
def test_the_face_is_light(name: str) -> None:
    heavy = [each for each in imports(module_level(parsed(name))) if any(within(each, package) for package in HEAVY)]
    assert not heavy, f"{name} must import these inside the functions that need them"


@pytest.mark.parametrize("name", [name for name in MODULES if any(within(name, each) for each in PLUGIN_ROOMS)])
def test_plugins_load_without_torch(name: str) -> None:
    banned = [
        each for each in imports(module_level(parsed(name))) if any(within(each, heavy) for heavy in ("torch", "strop.kernels"))
    ]
    assert not banned


@pytest.mark.parametrize("name", sorted(MODULES))
def test_files_and_functions_are_short(name: str) -> None:
    lines = len(MODULES[name].read_text(encoding="utf-8").splitlines())
    assert lines <= FILE_LINES, f"{lines} lines; a file is one idea in {FILE_LINES}"
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines, {FUNCTION_LINES} are allowed"


def test_kernels_is_no_package_of_its_own() -> None:
    """transformers imports a distribution called `kernels`; with an `__init__.py` it would find this folder."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
