"""The `strop` command. Each command's module imports what it needs inside its functions, so that `--help` is instant."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import typer
from rich.console import Console

from strop.commands import bench, chat, doctor, listing, serve
from strop.errors import ConfigError, StropError

FAILED, MISUSED = 1, 2


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"strop {metadata.version('strop')}")
        raise typer.Exit


def build() -> typer.Typer:
    """The command tree."""
    benches = typer.Typer(no_args_is_help=True, help="Measure against named baselines, side by side.")
    benches.command("serve")(bench.serve)
    benches.command("kernels")(bench.kernels)
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(options)
    app.command("serve")(serve.serve)
    app.command("chat")(chat.chat)
    app.command("models")(listing.models)
    app.command("plugins")(listing.plugins)
    app.command("doctor")(doctor.doctor)
    app.add_typer(benches, name="bench")
    return app


def options(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version.")] = False,
) -> None:
    """Serve models and talk to them."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, by default the process's own.

    A mistake ends in one line on stderr, and in exit code 2 for a misuse, 1 for a failure.
    """
    try:
        build()(arguments)
    except StropError as error:
        Console(stderr=True).print(f"strop: {error.message}", markup=False, highlight=False, style="red", soft_wrap=True)
        sys.exit(MISUSED if isinstance(error, ConfigError) else FAILED)
