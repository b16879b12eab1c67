"""`strop chat`: one question, or a conversation, with the answer streaming in."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from strop.commands.connection import ApiKey, Url, connect, only_model
from strop.errors import ConfigError

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

    from strop.client import ChatStreamOptions, Client

PluginOption = Annotated[str | None, typer.Option(help='A plugin by name, or as JSON: {"name": …}.')]


def chat(
    question: Annotated[str | None, typer.Argument(help="Ask this and leave; without it, a conversation.")] = None,
    model: Annotated[str | None, typer.Option(help="Default: the first that the server lists.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0)] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    guidance: PluginOption = None,
    sampler: PluginOption = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Talk to a model of a running server."""
    chosen = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    plugins = {"guidance": _choice("guidance", guidance), "sampler": _choice("sampler", sampler)}
    options = {key: value for key, value in {**chosen, **plugins}.items() if value is not None}
    history: list[ChatCompletionMessageParam] = [{"role": "system", "content": system}] if system else []
    console = Console(highlight=False)
    with connect(url, api_key) as client:
        options["model"] = model or only_model(client)
        if question is not None:
            answer(client, console, [*history, {"role": "user", "content": question}], options)
        else:
            converse(client, console, history, options)


def converse(client: Client, console: Console, history: list[ChatCompletionMessageParam], options: dict[str, Any]) -> None:
    """Read questions until end of file. Ctrl-C while an answer streams stops that answer only."""
    console.print(f"{options['model']} at {client.base_url}; Ctrl-C stops an answer, Ctrl-D leaves", style="dim")
    while True:
        try:
            question = console.input("[bold]> [/bold]")
        except EOFError:
            console.print()
            return
        if not question.strip():
            continue
        history.append({"role": "user", "content": question})
        history.append({"role": "assistant", "content": answer(client, console, history, options)})


def answer(client: Client, console: Console, messages: list[ChatCompletionMessageParam], options: dict[str, Any]) -> str:
    """Print the answer as it comes and return it, whole or up to where the user stopped it."""
    parts: list[str] = []
    request: ChatStreamOptions = {**options, "messages": messages, "stream": True}  # type: ignore[typeddict-item]
    with client.chat.completions.create(**request) as stream:
        try:
            for chunk in stream:
                text = (chunk.choices[0].delta.content or "") if chunk.choices else ""
                parts.append(text)
                console.out(text, end="")
        except KeyboardInterrupt:
            console.out(" …", end="")
    console.print()
    return "".join(parts)


def _choice(option: str, text: str | None) -> dict[str, Any] | str | None:
    """A plugin option: a name as it is, JSON as the object it spells."""
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        choice: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--{option} is neither a name nor JSON: {error}") from error
    return choice
