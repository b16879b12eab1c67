"""`strop serve`: from flags, environment and file to a running server."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from strop.commands.extras import needs
from strop.config import Config, demo_document, leaves, load, single_document
from strop.errors import ConfigError
from strop.plugins import Plugins


def serve(
    model: Annotated[str | None, typer.Argument(help="A model folder, a GGUF file, pypi:NAME, or a hub id.")] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration file (strop.yaml).")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Serve the embedded SmolLM2-135M.")] = False,
    host: Annotated[str | None, typer.Option(help="Address to listen on; beyond loopback a key is needed.")] = None,
    port: Annotated[int | None, typer.Option(help="0 picks a free one.")] = None,
    api_key: Annotated[list[str] | None, typer.Option(help="A key to accept; repeatable. Better: STROP_KEYS.")] = None,
    insecure: Annotated[bool | None, typer.Option("--insecure", help="Listen beyond loopback without a key.")] = None,
    drain_seconds: Annotated[float | None, typer.Option(help="How long requests may finish on SIGTERM.")] = None,
    default_model: Annotated[str | None, typer.Option(help="Answers for unknown model names.")] = None,
    compat: Annotated[str | None, typer.Option(help="lenient: accept OpenAI fields that cannot be honoured.")] = None,
    network: Annotated[bool | None, typer.Option("--network", help="Sources may be fetched from a hub.")] = None,
    log_level: Annotated[Literal["debug", "info", "warning", "error"], typer.Option()] = "warning",
    print_config: Annotated[bool, typer.Option("--print-config", help="Show every value with its source.")] = False,
) -> None:
    """Serve one model, the models of a configuration file, or the embedded demo model."""
    flags = {
        "host": host,
        "port": port,
        "keys": api_key,
        "insecure": insecure,
        "drain_seconds": drain_seconds,
        "default_model": default_model,
        "compat": compat,
        "network": network,
    }
    settled, origins = load(_source(model, config, demo=demo), os.environ, flags)
    if print_config:
        _show(settled, origins)
        return
    check_exposure(settled)
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    host_models(settled)


def check_exposure(config: Config) -> None:
    """Refuse to let everybody on the network in. Raises ConfigError."""
    server = config.server
    if server.keys or server.insecure or _is_loopback(server.host):
        return
    raise ConfigError(
        f"{server.host} can be reached from other machines and no API key is set: "
        "set STROP_KEYS or server.keys_file, or say --insecure"
    )


def host_models(config: Config, plugins: Plugins | None = None) -> None:
    """Load the models, tell how to reach them, and serve until a signal comes."""
    for quiet in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):  # read on import; our own progress is shown instead
        os.environ.setdefault(quiet, "1")
    with needs("serve"):
        from strop.server.house import House
        from strop.server.run import run
    with Console(stderr=True).status(f"loading {', '.join(config.models)}") as status:

        def ready(url: str) -> None:
            status.stop()
            Console(highlight=False, soft_wrap=True).print(welcome(url, config), markup=False)

        run(House(config, plugins=plugins), ready=ready)


def welcome(url: str, config: Config) -> str:
    """The address, and one command line that works."""
    key = ' -H "Authorization: Bearer $STROP_API_KEY"' if config.server.keys else ""
    question = {"role": "user", "content": "Why is the sky blue?"}
    body = json.dumps({"model": next(iter(config.models), ""), "messages": [question]})
    curl = f"curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"
    return f"strop is ready at {url}/v1\n{curl}"


def _source(model: str | None, config: Path | None, *, demo: bool) -> Path | Mapping[str, Any]:
    if [model is not None, config is not None, demo].count(True) != 1:
        raise ConfigError("say what to serve: one of MODEL, --config FILE and --demo")
    if config is not None:
        return config
    return demo_document() if model is None else single_document(model)


def _show(config: Config, origins: Mapping[str, str]) -> None:
    table = Table("value", "is", "from", box=None)
    for path, value in leaves(config).items():
        told = f"{len(value)} set" if path == "server.keys" else str(value)
        table.add_row(path, Text(told), Text(origins[path]))
    Console(soft_wrap=True).print(table)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
