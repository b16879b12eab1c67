"""Discovery of plugins by entry point: lazily by name, never fatal to a server unless two claim one name.

A plugin is one class registered in one of the groups `strop.guidance`, `strop.samplers`, `strop.verifiers`; an engine is a
function that loads one, a route is a function that adds routes. Strop's own parts register the same way as anybody's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeAlias, get_args

from pydantic import ValidationError

from strop.contracts import Domain, Plugin
from strop.errors import InvalidOption, PluginError, nearest, shorten

Group: TypeAlias = Literal["guidance", "samplers", "verifiers", "engines", "routes"]
GROUPS: tuple[Group, ...] = get_args(Group)
FIELDS: Mapping[Group, str] = {"guidance": "guidance", "samplers": "sampler", "verifiers": "rerank.verifiers"}
"""The field of a request that picks from a group."""
OWN = "strop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """One entry of `strop plugins`. `error` says why it cannot be used."""

    group: Group
    name: str
    target: str
    distribution: str
    version: str
    error: str | None = None


class Plugins:
    """The entry points of one process. What was imported is kept here, so make one and pass it on."""

    def __init__(self, points: Iterable[EntryPoint]) -> None:
        self._points: dict[tuple[Group, str], EntryPoint] = {}
        self._loaded: dict[tuple[Group, str], Any] = {}
        for point in points:
            self._register(point)

    @classmethod
    def discover(cls, environment: Mapping[str, str], *, extra: Iterable[EntryPoint] = ()) -> Plugins:
        """Everything installed, or only strop's own parts where `STROP_PLUGINS=builtin`, and `extra`."""
        mode = environment.get("STROP_PLUGINS", "all")
        if mode not in ("all", "builtin"):
            raise PluginError(f"STROP_PLUGINS is {mode!r}; valid: 'all', 'builtin'")
        points = [point for group in GROUPS for point in entry_points(group=f"strop.{group}")]
        return cls([*(point for point in points if mode == "all" or _distribution(point) == OWN), *extra])

    def names(self, group: Group) -> list[str]:
        return sorted(name for kind, name in self._points if kind == group)

    def load(self, group: Group, name: str) -> Any:
        """The object behind a name. Raises PluginError for an unknown name and for a failing import."""
        key = group, name
        if key not in self._points:
            valid = self.names(group)
            raise PluginError(f"no {group} plugin {name!r}; installed: {', '.join(valid) or 'none'}.{nearest(name, valid)}")
        if key not in self._loaded:
            self._loaded[key] = self._import(group, self._points[key])
        return self._loaded[key]

    def classes(self, group: Group, domain: Domain | None = None) -> dict[str, type[Plugin]]:
        """The usable plugins of a group by name, those of one domain only if it is given."""
        usable: dict[str, type[Plugin]] = {}
        for name in self.names(group):
            try:
                plugin = self.load(group, name)
            except PluginError:
                continue
            if domain is None or domain in plugin.domains:
                usable[name] = plugin
        return usable

    def schemas(self, group: Group, domain: Domain | None = None) -> dict[str, dict[str, Any]]:
        """The JSON schema of every usable plugin of a group."""
        return {name: plugin.model_json_schema() for name, plugin in self.classes(group, domain).items()}

    def build(self, group: Group, value: str | Mapping[str, Any], *, domain: Domain | None = None) -> Plugin:
        """A plugin with its options, from its name or from `{"name": …, …}`. Raises InvalidOption."""
        options: dict[str, Any] = {"name": value} if isinstance(value, str) else dict(value)
        name, param = options.get("name"), FIELDS[group]
        valid = self.classes(group, domain)
        if not isinstance(name, str) or name not in valid:
            known = f"valid: {', '.join(valid) or 'none'}.{nearest(str(name), valid)}"
            where = f" for a {domain} model" if domain else ""
            raise InvalidOption(f"{shorten(repr(name))} is no {param}{where}; {known}", param=f"{param}.name")
        try:
            return valid[name].model_validate(options)
        except ValidationError as error:
            raise _refusal(error, param, valid[name]) from error

    def listing(self) -> list[Installed]:
        """Every plugin found, with the error of those that cannot be imported."""
        return [self._describe(group, name) for group, name in sorted(self._points)]

    def _register(self, point: EntryPoint) -> None:
        group = point.group.removeprefix("strop.")
        if group not in GROUPS:
            raise PluginError(f"{point.group!r} is no plugin group; valid: {', '.join(f'strop.{g}' for g in GROUPS)}")
        other = self._points.setdefault((group, point.name), point)
        if (_distribution(other), other.value) != (_distribution(point), point.value):
            raise PluginError(
                f"{_distribution(other)} ({other.value}) and {_distribution(point)} ({point.value}) both register "
                f"{point.name!r} in {point.group}; uninstall one, or set STROP_PLUGINS=builtin"
            )

    def _import(self, group: Group, point: EntryPoint) -> Any:
        try:
            loaded = point.load()
        except Exception as error:
            raise PluginError(f"{group} plugin {point.name!r} ({point.value}): {type(error).__name__}: {error}") from error
        if group in ("engines", "routes"):
            return loaded
        if not (isinstance(loaded, type) and issubclass(loaded, Plugin)):
            raise PluginError(f"{group} plugin {point.name!r}: {point.value} is no subclass of strop.contracts.Plugin")
        if loaded.model_fields["name"].default != point.name:
            raise PluginError(
                f"{group} plugin {point.name!r}: the class says its name is {loaded.model_fields['name'].default!r}"
            )
        return loaded

    def _describe(self, group: Group, name: str) -> Installed:
        point, error = self._points[group, name], None
        try:
            self.load(group, name)
        except PluginError as reason:
            error = reason.message
        distribution = point.dist
        return Installed(
            group=group,
            name=name,
            target=point.value,
            distribution=_distribution(point),
            version=distribution.version if distribution else "",
            error=error,
        )


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown"


def _refusal(error: ValidationError, param: str, plugin: type[Plugin]) -> InvalidOption:
    """The first thing wrong, with the path to it and, for an unknown key, the nearest valid one."""
    first = error.errors()[0]
    path = shorten(".".join([param, *(str(part) for part in first["loc"])]))
    if first["type"] == "extra_forbidden":
        valid = [name for name in plugin.model_fields if name != "name"]
        text = f"unknown option; valid: {', '.join(valid) or 'none'}.{nearest(str(first['loc'][-1]), valid)}"
    else:
        text = first["msg"]
    return InvalidOption(f"{path}: {text}", param=path)
