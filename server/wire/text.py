"""What the bodies of chat and completions share: sampling, limits on length, and strop's own objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from annotated_types import Le, MaxLen
from pydantic import Field, SkipValidation, create_model

from strop.config import Limits
from strop.contracts import Guidance, Plugin, Sampler
from strop.errors import InvalidOption, InvalidRequest
from strop.plugins import Group, Plugins
from strop.samplers.tokens import MAX_TOP_K
from strop.server.wire.fields import Body, Only, Seed, Strings, TokenId

FLAT = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
)
"""Sampler options that OpenAI's clients and vLLM's put at the top level of the body."""
DEFAULT_SAMPLER = "tokens"


class StreamOptions(Body):
    """How a stream ends."""

    include_usage: bool | None = Field(None, description="Send a last chunk with `usage` and no choices.")
    include_obfuscation: Annotated[bool | None, Only((None, False))] = Field(None, description="Not supported.")


class TextBody(Body):
    """Fields of chat completions and of completions alike."""

    model: str = Field(min_length=1, max_length=256, description="A name from `/v1/models`.")
    stream: bool | None = Field(None, description="Answer by server-sent events, a chunk per step of the engine.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    n: int | None = Field(None, ge=1, description="Choices per prompt; default 1.")
    seed: Seed | None = Field(None, description="Same seed, same answer, alone or in any batch.")
    stop: Strings | None = Field(None, description="Strings that end the answer; they are not part of it.")
    stop_token_ids: list[TokenId] | None = Field(None, description="Token ids that end the answer.")
    min_tokens: int | None = Field(None, ge=0, description="The answer does not end before this many tokens.")
    ignore_eos: bool | None = Field(None, description="Go on past the model's end-of-text token.")
    temperature: float | None = Field(None, ge=0, le=2, description="Divides the logits; 0 takes the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1, description="Keep the likeliest tokens that reach this probability.")
    top_k: int | None = Field(
        None, ge=-1, le=MAX_TOP_K, description="Keep this many of the likeliest tokens; 0 or -1 keeps all."
    )
    min_p: float | None = Field(None, ge=0, le=1, description="Drop tokens less likely than this times the likeliest one.")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Against tokens that were generated.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="Against tokens, by how often they were generated.")
    repetition_penalty: float | None = Field(None, gt=0, le=10, description="Against tokens of the prompt and the answer.")
    logit_bias: dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, description="Token id to a number added to its logit; -100 bans, 100 forces."
    )
    user: str | None = Field(None, max_length=512, description="Accepted and not used.")
    guidance: Any = Field(None, description="How weaker predictions steer the model.")
    sampler: Any = Field(None, description="How tokens are drawn; the flat fields are short for `tokens`.")
    rerank: Annotated[Any, Only((None,))] = Field(None, description="Not supported by the models of this server.")


B = TypeVar("B", bound=TextBody)
P = TypeVar("P", bound=Plugin)


def installed(body: type[B], plugins: Plugins, caps: Mapping[str, Any]) -> type[B]:
    """`body` with the plugins of this server in its schema, and `caps` (field name to constraint) on its fields."""
    fields: dict[str, Any] = {
        name: (Annotated[body.model_fields[name].rebuild_annotation(), cap], body.model_fields[name])
        for name, cap in caps.items()
    }
    for name, group in (("guidance", plugins.classes("guidance")), ("sampler", plugins.classes("samplers"))):
        fields[name] = (_choice(group), body.model_fields[name])
    made: type[B] = create_model(body.__name__, __base__=body, __doc__=body.__doc__, **fields)
    return made


def shared_caps(limits: Limits) -> dict[str, Any]:
    return {
        "n": Le(limits.n),
        "stop": MaxLen(limits.stop),
        "stop_token_ids": MaxLen(limits.stop),
        "logit_bias": MaxLen(limits.logit_bias),
    }


def shared_fields(body: TextBody, limits: Limits, plugins: Plugins) -> dict[str, Any]:
    """The arguments of `contracts.TextRequest` that do not depend on the endpoint."""
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options goes with stream: true only", param="stream_options")
    for text in body.stop or ():
        if not 0 < len(text) <= limits.stop_chars:
            raise InvalidRequest(f"stop: each string must have 1 to {limits.stop_chars} characters", param="stop")
    return {
        "model": body.model,
        "seed": body.seed,
        "stream": bool(body.stream),
        "include_usage": bool(body.stream_options and body.stream_options.include_usage),
        "n": body.n or 1,
        "stop": tuple(body.stop or ()),
        "stop_token_ids": tuple(body.stop_token_ids or ()),
        "min_tokens": body.min_tokens or 0,
        "ignore_eos": bool(body.ignore_eos),
        "guidance": _guidance(body, plugins),
        "sampler": _sampler(body, plugins),
    }


def _guidance(body: TextBody, plugins: Plugins) -> Guidance | None:
    if body.guidance is None:
        return None
    return _built(Guidance, plugins, "guidance", _option(body.guidance, "guidance"))


def _sampler(body: TextBody, plugins: Plugins) -> Sampler | None:
    """The sampler with the options the caller set, whether flat or in the `sampler` object."""
    flat = {name: value for name in FLAT if (value := getattr(body, name)) is not None}
    if flat.get("top_k") == -1:
        flat["top_k"] = 0
    if "logit_bias" in flat:
        flat["logit_bias"] = {int(token): bias for token, bias in flat["logit_bias"].items()}
    if body.sampler is None:
        return _built(Sampler, plugins, "samplers", {"name": DEFAULT_SAMPLER, **flat}) if flat else None
    chosen = _option(body.sampler, "sampler")
    sampler = _built(Sampler, plugins, "samplers", chosen)
    if not flat:
        return sampler
    _check_conflicts(sampler, flat)
    return _built(Sampler, plugins, "samplers", {**chosen, **flat})


def _built(kind: type[P], plugins: Plugins, group: Group, options: Mapping[str, Any]) -> P:
    built = plugins.build(group, options)
    if not isinstance(built, kind):
        raise InvalidOption(f"{built.name!r} is no {kind.__name__.lower()}", param=f"{kind.__name__.lower()}.name")
    return built


def _check_conflicts(chosen: Plugin, flat: Mapping[str, Any]) -> None:
    """An option may be given flat and in the object only with one value."""
    for name in flat.keys() & chosen.model_fields_set:
        if flat[name] != (inside := getattr(chosen, name)):
            raise InvalidOption(
                f"{name} is {flat[name]!r} in the body and {inside!r} in sampler; give one of them", param=f"sampler.{name}"
            )


def _option(value: Any, field: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict):
        return value
    raise InvalidOption(f"{field} must be a name or an object with a name", param=field)


def _choice(plugins: Mapping[str, type[Plugin]]) -> Any:
    """A field type that documents every plugin's options. Values pass as they are: `Plugins.build` checks them."""
    union: Any = None
    for plugin in plugins.values():
        union = plugin if union is None else union | plugin
    if len(plugins) > 1:
        union = Annotated[union, Field(discriminator="name")]
    if plugins:
        union = union | Annotated[str, Field(json_schema_extra={"enum": list(plugins)})] | None
    unchecked: Any = SkipValidation
    return unchecked[union]
