from __future__ import annotations

import sys
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import Field

from strop.contracts import Domain, Guidance, Sampler
from strop.errors import InvalidOption, PluginError
from strop.plugins import Plugins


class Nudge(Guidance):
    domains: ClassVar[frozenset[Domain]] = frozenset({"causal"})
    name: Literal["nudge"] = "nudge"
    scale: float = Field(1.0, ge=0)
    until: float = 1.0


class Paint(Sampler):
    domains: ClassVar[frozenset[Domain]] = frozenset({"latent"})
    name: Literal["paint"] = "paint"


class Package(Distribution):
    """An installed distribution that is not on disk."""

    def __init__(self, name: str) -> None:
        self.text = f"Name: {name}\nVersion: 1.2\n"

    def read_text(self, filename: str) -> str | None:
        return self.text if filename == "METADATA" else None

    def locate_file(self, path: object) -> Path:
        return Path(str(path))


def point(name: str, value: str = f"{__name__}:Nudge", *, group: str = "guidance", package: str = "acme") -> EntryPoint:
    made = EntryPoint(name=name, value=value, group=f"strop.{group}")
    made.__dict__["dist"] = Package(package)
    return made


NUDGE, PAINT = point("nudge"), point("paint", f"{__name__}:Paint", group="samplers")


def test_plugins_load_by_name_once() -> None:
    plugins = Plugins([NUDGE, PAINT])
    assert plugins.names("guidance") == ["nudge"]
    assert plugins.load("guidance", "nudge") is Nudge
    assert plugins.load("guidance", "nudge") is Nudge


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    plugins = Plugins([point("nudge"), point("broken", "no_such_module:Thing")])
    assert plugins.names("guidance") == ["broken", "nudge"]
    with pytest.raises(PluginError, match="no_such_module"):
        plugins.load("guidance", "broken")


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(PluginError, match="Did you mean 'nudge'"):
        Plugins([NUDGE]).load("guidance", "nugde")


def test_a_plugin_that_cannot_be_imported_is_listed_and_left_out() -> None:
    plugins = Plugins([NUDGE, point("broken", "no_such_module:Thing")])
    assert set(plugins.schemas("guidance")) == {"nudge"}
    broken, nudge = plugins.listing()
    assert broken.error is not None
    assert "ModuleNotFoundError" in broken.error
    assert (nudge.error, nudge.distribution, nudge.version) == (None, "acme", "1.2")


@pytest.mark.parametrize("value", [f"{__name__}:NUDGE", f"{__name__}:Paint", "builtins:int"])
def test_an_object_that_is_not_the_plugin_it_claims_to_be_is_refused(value: str) -> None:
    with pytest.raises(PluginError):
        Plugins([point("nudge", value)]).load("guidance", "nudge")


def test_two_distributions_with_one_name_are_an_error_that_names_both() -> None:
    with pytest.raises(PluginError, match=r"acme .* and zenith .* both register 'nudge'"):
        Plugins([NUDGE, point("nudge", package="zenith")])


def test_one_registration_seen_twice_is_fine() -> None:
    assert Plugins([NUDGE, point("nudge")]).names("guidance") == ["nudge"]


def test_an_unknown_group_is_an_error() -> None:
    with pytest.raises(PluginError, match=r"strop\.engines"):
        Plugins([point("x", group="toys")])


def test_schemas_and_classes_can_be_of_one_domain() -> None:
    plugins = Plugins([NUDGE, PAINT])
    assert plugins.schemas("guidance", "causal")["nudge"]["properties"]["scale"]["minimum"] == 0
    assert plugins.schemas("guidance", "latent") == {}


@pytest.mark.parametrize("value", ["nudge", {"name": "nudge"}])
def test_a_string_is_short_for_a_name(value: str | dict[str, str]) -> None:
    assert Plugins([NUDGE]).build("guidance", value) == Nudge()


def test_options_are_set_and_remembered_as_set() -> None:
    built = Plugins([NUDGE]).build("guidance", {"name": "nudge", "scale": 2})
    assert built == Nudge(scale=2)
    assert built.model_fields_set == {"name", "scale"}


@pytest.mark.parametrize(
    ("value", "param", "message"),
    [
        ("nugde", "guidance.name", "Did you mean 'nudge'"),
        ({"scale": 1}, "guidance.name", "valid: nudge"),
        ({"name": ["nudge"]}, "guidance.name", "valid: nudge"),
        ({"name": "nudge", "scael": 1}, "guidance.scael", "Did you mean 'scale'"),
        ({"name": "nudge", "scale": -1}, "guidance.scale", "greater than or equal to 0"),
        ({"name": "nudge", "scale": float("nan")}, "guidance.scale", "finite"),
    ],
)
def test_bad_choices_are_refused_with_path_and_help(value: str | dict[str, object], param: str, message: str) -> None:
    with pytest.raises(InvalidOption, match=message) as refusal:
        Plugins([NUDGE]).build("guidance", value)
    assert refusal.value.param == param


@pytest.mark.parametrize("value", ["n" * 10**6, {"name": ["n"] * 10**5}, {"name": "nudge", "s" * 10**6: 1}])
def test_a_refusal_does_not_repeat_what_is_long(value: str | dict[str, object]) -> None:
    with pytest.raises(InvalidOption) as refusal:
        Plugins([NUDGE]).build("guidance", value)
    assert len(refusal.value.message) + len(refusal.value.param or "") < 400


def test_a_plugin_of_another_domain_is_no_choice() -> None:
    with pytest.raises(InvalidOption, match="for a latent model"):
        Plugins([NUDGE]).build("guidance", "nudge", domain="latent")


def test_our_own_parts_register_like_anybody_s() -> None:
    plugins = Plugins.discover({"STROP_PLUGINS": "builtin"})
    assert "tokens" in plugins.names("samplers")
    assert "causal" in plugins.names("engines")
    assert all(entry.distribution == "strop" for entry in plugins.listing())
    assert set(plugins.names("samplers")) <= set(Plugins.discover({}).names("samplers"))


def test_the_safe_mode_leaves_out_what_others_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "acme-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[strop.guidance]\nnudge = {__name__}:Nudge\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert "nudge" in Plugins.discover({}).names("guidance")
    assert "nudge" not in Plugins.discover({"STROP_PLUGINS": "builtin"}).names("guidance")


def test_the_safe_mode_has_one_spelling() -> None:
    with pytest.raises(PluginError, match="'builtin'"):
        Plugins.discover({"STROP_PLUGINS": "none"})
