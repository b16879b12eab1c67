"""`strop models` and `strop plugins`: what a server hosts, and what is installed here."""

from __future__ import annotations

import os

from rich.console import Console
from rich.table import Table
from rich.text import Text

from strop.commands.connection import ApiKey, Url, connect


def models(url: Url = None, api_key: ApiKey = None) -> None:
    """List the models of a running server."""
    with connect(url, api_key) as client:
        entries = [model.to_dict() for model in client.models.list()]
    columns = [key for key in entries[0] if key not in ("object", "created")] if entries else ["id"]
    table = Table(*columns)
    for entry in entries:
        table.add_row(*(Text(str(entry.get(column, ""))) for column in columns))
    Console().print(table)


def plugins() -> None:
    """List the plugins installed here, with the error of those that cannot be imported."""
    from strop.plugins import Plugins

    table = Table("kind", "name", "from", "state")
    for entry in Plugins.discover(os.environ).listing():
        state = Text(entry.error, style="red") if entry.error else Text("ok", style="green")
        table.add_row(entry.group, entry.name, f"{entry.distribution} {entry.version}", state)
    Console().print(table)
