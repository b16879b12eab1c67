"""One op = one reference, which defines it, and fast paths that must agree with it; the dispatch between them.

A call takes the first fast path that supports its arguments, else the reference. `STROP_KERNELS` (read once, at the first
call) or `use()` forces one path by name: then an unavailable path raises instead of falling back.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from strop.errors import KernelError, nearest

P = ParamSpec("P")
R = TypeVar("R")

REFERENCE = "reference"
PATHS = (REFERENCE, "cpu", "triton")

_log = logging.getLogger(__name__)
_record: ContextVar[dict[str, str] | None] = ContextVar("strop_kernel_record", default=None)
_forced: ContextVar[str | None] = ContextVar("strop_kernel_path", default=None)


class Arguments(NamedTuple):
    """The arguments of one call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def arguments(*args: Any, **kwargs: Any) -> Arguments:
    return Arguments(args, kwargs)


class Choice(NamedTuple):
    """Which path a call takes, and why in words."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class FastPath(Generic[P, R]):
    """A faster callable of the reference's signature. `supports` says None, or why it cannot take these arguments."""

    name: str
    run: Callable[P, R]
    supports: Callable[P, str | None]


class Op(Generic[P, R]):
    """A named operation. `example` makes the same small arguments at every call: for the self-check, `explain` and tests.

    The self-check runs once per fast path, at its first use: results and arguments written in place must equal those of the
    reference within `tolerance` (relative, absolute; default: `torch.testing`'s for the dtype), or the path is dropped.
    """

    def __init__(
        self,
        name: str,
        reference: Callable[P, R],
        *paths: FastPath[P, R],
        example: Callable[[], Arguments],
        tolerance: tuple[float, float] | None = None,
    ) -> None:
        self.name = name
        self.reference = reference
        self.paths = paths
        self.example = example
        self._tolerance = tolerance
        self._fault: dict[str, str | None] = {}
        self._said: set[str] = set()
        self._custom: Callable[..., Any] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._custom is not None and torch.compiler.is_compiling():
            result: R = self._custom(*args, **kwargs)
            return result
        return self._dispatch(*args, **kwargs)

    def _dispatch(self, *args: P.args, **kwargs: P.kwargs) -> R:
        name, run = self._choose(args, kwargs)
        record = _record.get()
        if record is not None:
            before = record.get(self.name, name)
            record[self.name] = name if name == before else "+".join(sorted({name, *before.split("+")}))
        return run(*args, **kwargs)

    def _choose(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Callable[P, R]]:
        forced = _forced.get() or _environment()
        if forced == REFERENCE:
            return REFERENCE, self.reference
        for path in self.paths:
            if forced is not None and path.name != forced:
                continue
            reason = path.supports(*args, **kwargs) or self._checked(path)
            if reason is None:
                return path.name, path.run
            if forced is not None:
                raise KernelError(f"{self.name}: the path {forced!r} was requested, but {reason}.")
            self._say(path.name, reason)
        if forced is not None:
            raise KernelError(f"{self.name}: the path {forced!r} was requested, but this op has none of that name.")
        return REFERENCE, self.reference

    def _checked(self, path: FastPath[P, R]) -> str | None:
        """None if the path passed its self-check, which runs here at first use, else how it differs from the reference."""
        if path.name not in self._fault:
            self._fault[path.name] = self._self_check(path)
        return self._fault[path.name]

    def _self_check(self, path: FastPath[P, R]) -> str | None:
        given, expected = self.example(), self.example()
        reason = path.supports(*given.args, **given.kwargs)
        if reason is not None:
            return f"it cannot run its own example ({reason})"
        token = _record.set(None)
        try:
            result, wanted = path.run(*given.args, **given.kwargs), self.reference(*expected.args, **expected.kwargs)
        finally:
            _record.reset(token)
        rtol, atol = self._tolerance or (None, None)
        pairs = zip(_tensors((result, given)), _tensors((wanted, expected)), strict=True)
        try:
            for actual, right in pairs:
                torch.testing.assert_close(actual, right, rtol=rtol, atol=atol, equal_nan=True)
        except AssertionError as error:
            return f"its self-check failed: {str(error).splitlines()[0]}"
        return None

    def _say(self, path: str, reason: str) -> None:
        if f"{path}: {reason}" not in self._said:
            self._said.add(f"{path}: {reason}")
            _log.warning("%s does not run on its %r path: %s", self.name, path, reason)

    def explain(self, *args: P.args, **kwargs: P.kwargs) -> Choice:
        """The path that such a call takes now. Raises `KernelError` where the call would."""
        chosen, _ = self._choose(args, kwargs)
        forced = _forced.get() or _environment()
        if forced is not None:
            return Choice(chosen, "requested by name")
        refusals = []
        for path in self.paths:
            if path.name == chosen:
                break
            refusals.append(f"{path.name}: {path.supports(*args, **kwargs) or self._checked(path)}")
        return Choice(chosen, "; ".join(refusals) or ("fastest path" if self.paths else "the only path"))

    def register(self, *, fake: Callable[..., Any], mutates: Sequence[str] = ()) -> None:
        """Make this a torch custom op `strop::<name>`, so that `torch.compile` keeps the call whole in its graph.

        `fake` takes the same arguments and returns empty tensors of the right shape and dtype; `mutates` names the arguments
        that are written in place. The reference's annotations must be types that torch's schemas know.
        """
        schema = torch.library.infer_schema(self.reference, mutates_args=tuple(mutates))
        custom = torch.library.custom_op(f"strop::{self.name}", self._dispatch, mutates_args=tuple(mutates), schema=schema)
        custom.register_fake(fake)
        self._custom = custom


@functools.cache
def _environment() -> str | None:
    name = os.environ.get("STROP_KERNELS")
    return _valid(name) if name else None


def _valid(name: str) -> str:
    if name not in PATHS:
        raise KernelError(f"STROP_KERNELS: unknown path {name!r}; valid are {', '.join(PATHS)}.{nearest(name, PATHS)}")
    return name


@contextmanager
def use(path: str) -> Iterator[None]:
    """Force one path by name for every op called inside, as `STROP_KERNELS` does for the process."""
    token = _forced.set(_valid(path))
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def trace() -> Iterator[Mapping[str, str]]:
    """Yields a mapping, op name to path name, that fills with what runs inside; paths are joined by "+" where several ran."""
    record: dict[str, str] = {}
    token = _record.set(record)
    try:
        yield record
    finally:
        _record.reset(token)


def explain(op: Op[..., Any], *args: Any, **kwargs: Any) -> Choice:
    """The path that such a call of `op` takes, and why; without arguments, a call with the op's example."""
    given = Arguments(args, kwargs) if args or kwargs else op.example()
    return op.explain(*given.args, **given.kwargs)


def ops() -> tuple[Op[..., Any], ...]:
    """Every op that a module of `strop.kernels` defines at its top level, by name."""
    package = importlib.import_module("strop.kernels")
    modules = [importlib.import_module(f"strop.kernels.{module.name}") for module in pkgutil.iter_modules(package.__path__)]
    found = {value.name: value for module in modules for value in vars(module).values() if isinstance(value, Op)}
    return tuple(found[name] for name in sorted(found))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
