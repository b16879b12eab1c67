"""The documents say what is so: settings, links, commands, and examples that run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from strop.cli import build
from strop.config import Limits, ModelConfig, Preset, ServerConfig
from strop.contracts import Step

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#: ]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_are_python(page: Path) -> None:
    for code in blocks(page, "python"):
        compile(code, page.name, "exec")


def test_every_setting_is_documented_with_its_default() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]*)", text, re.MULTILINE))
    for section in (ServerConfig, Limits, ModelConfig, Preset):
        for name, field in section.model_fields.items():
            if name == "limits":
                continue
            assert name in told, f"{section.__name__}.{name}"
            if isinstance(field.default, int | str) and section is not ModelConfig:
                assert told[name].strip().strip("`").lower() == str(field.default).lower(), name


def test_commands_in_the_readme_exist() -> None:
    lines = [line for block in blocks(ROOT / "README.md", "sh") for line in block.splitlines()]
    used = {match for line in lines for match in re.findall(r"(?:^|; )strop (\w+)", line)}
    listed = CliRunner().invoke(build(), ["--help"]).stdout
    assert used >= {"serve", "chat", "doctor", "bench"}
    assert [command for command in used if command not in listed] == []


def test_make_targets_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = {match for block in blocks(ROOT / "README.md", "sh") for match in re.findall(r"\bmake ([\w-]+)", block)}
    assert used >= {"demo", "test", "test-all"}
    assert used <= targets


def test_the_guidance_of_the_plugin_page_works() -> None:
    (code,) = blocks(ROOT / "docs" / "plugins.md", "python")
    names: dict[str, Any] = {}
    exec(compile(code, "plugins.md", "exec", dont_inherit=True), names)
    push = names["Push"](scale=3.0)
    roles = {"base": lambda x, step: torch.tensor([[2.0]]), "weak": lambda x, step: torch.tensor([[1.0]])}
    assert push.predict(roles, torch.zeros(1, 1), Step(index=0, total=1), push.start()).item() == 4.0
    assert "scale" in names["Push"].model_json_schema()["properties"]
