"""What is built holds every module of every room under one import name, and importing the face loads no torch."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("kernels", "samplers", "guidance", "server")
HEAVY = ("torch", "transformers", "fastapi", "uvicorn", "strop.server")


def expected() -> set[str]:
    """Paths below `strop/` that an installation needs."""
    face = {path.relative_to(ROOT / "src" / "strop") for path in (ROOT / "src" / "strop").glob("*.py")}
    face |= {path.relative_to(ROOT / "src" / "strop") for path in (ROOT / "src" / "strop" / "commands").rglob("*.py")}
    rooms = {path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    sources = {path.relative_to(ROOT) for path in (ROOT / "kernels" / "csrc").iterdir() if path.is_file()}
    return {path.as_posix() for path in face | rooms | sources} | {"py.typed"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.mark.slow
def test_the_wheel_holds_every_room_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"strop"}
    assert {f"strop/{path}" for path in expected()} - names == set()


@pytest.mark.slow
def test_the_sdist_holds_every_room(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {"/".join(Path(member.name).parts[1:]) for member in archive.getmembers() if not member.isdir()}
    assert {f"src/strop/{path}" for path in expected()} - names == set()


@pytest.mark.parametrize("module", ["strop", "strop.client", "strop.cli", "strop.config", "strop.testing"])
def test_the_face_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


BASE_INSTALL = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from strop import cli
cli.main({arguments!r})
"""
EXTRA = ("torch", "transformers", "numpy", "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "orjson", "msgpack")


def without_extras(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as it is where only the base dependencies are installed."""
    code = BASE_INSTALL.format(absent=EXTRA, arguments=list(arguments))
    return subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["plugins"], ["serve", "--demo", "--print-config"]])
def test_the_base_install_is_enough_for(arguments: list[str]) -> None:
    done = without_extras(*arguments)
    assert done.returncode == 0, done.stderr


def test_the_doctor_of_a_base_install_says_what_to_install() -> None:
    assert "pip install 'strop[serve]'" in without_extras("doctor").stdout


@pytest.mark.parametrize("arguments", [["serve", "--demo"], ["bench", "serve"]])
def test_the_base_install_says_what_else_is_needed_for(arguments: list[str]) -> None:
    done = without_extras(*arguments)
    assert done.returncode == 2, done.stderr
    assert "pip install 'strop[serve]'" in done.stderr


def test_plugins_can_be_built_without_torch() -> None:
    code = "import sys; from strop.samplers.tokens import Tokens; Tokens(top_k=5); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
