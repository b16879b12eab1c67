"""How commands reach a server: the options they share, and errors told in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from strop.errors import StropError

if TYPE_CHECKING:
    from strop.client import Client

Url: TypeAlias = Annotated[str | None, typer.Option(help="Server to talk to; default: STROP_URL or the local one.")]
ApiKey: TypeAlias = Annotated[str | None, typer.Option(help="API key; default: STROP_API_KEY.")]


class ServerUnreachable(StropError):
    """No server answers at the address."""

    code = "server_unreachable"


class ServerRefused(StropError):
    """The server answered with an error."""

    code = "server_refused"


@contextmanager
def connect(url: str | None, api_key: str | None) -> Iterator[Client]:
    """A client whose failures are raised as one-line errors."""
    import openai

    from strop.client import Client

    with Client(base_url=url, api_key=api_key) as client:
        try:
            yield client
        except openai.APIConnectionError as error:
            raise ServerUnreachable(f"no server answers at {client.base_url}; start one with: strop serve --demo") from error
        except openai.APIStatusError as error:
            body = error.body if isinstance(error.body, dict) else {}
            raise ServerRefused(f"{body.get('message') or error.message} (HTTP {error.status_code})") from error
        except openai.APIError as error:
            raise ServerRefused(error.message) from error


def only_model(client: Client) -> str:
    """The first model that the server lists."""
    names = [model.id for model in client.models.list()]
    if not names:
        raise ServerRefused("the server has no model ready; it may still be loading")
    return names[0]
