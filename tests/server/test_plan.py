from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import Any, ClassVar, Literal

import pytest

from strop.config import Config, Limits, ModelConfig, Preset, ServerConfig
from strop.contracts import ChatRequest, CompletionRequest, Domain, Guidance, Role, Sampler, TextPlan
from strop.errors import ContextTooLong, InvalidOption, InvalidRequest, ModelNotFound, StropError
from strop.samplers.tokens import Tokens
from strop.server.house import House
from strop.server.plan import Prompt, resolve
from strop.testing import END, StubTokenizer, stub_plugins

CONTEXT, ROWS, CACHE = 64, 4, 8192
ID = StubTokenizer.vocab_size


class Negative(Guidance):
    """Reads a second prompt of its own, through one network."""

    domains: ClassVar[frozenset[Domain]] = frozenset({"causal"})
    roles: ClassVar[tuple[Role, ...]] = ("base", "uncond")
    name: Literal["negative"] = "negative"
    text: str = "not this"

    def prompts(self, prompt: Prompt) -> Mapping[Role, Prompt]:
        return {"uncond": Prompt("guidance.text", self.text)}


class Plain(Guidance):
    domains: ClassVar[frozenset[Domain]] = frozenset({"causal"})
    name: Literal["plain"] = "plain"


class Partnered(Plain):
    roles: ClassVar[tuple[Role, ...]] = ("strong", "weak")
    name: Literal["partnered"] = "partnered"  # type: ignore[assignment]


class Latent(Guidance):
    domains: ClassVar[frozenset[Domain]] = frozenset({"latent"})
    name: Literal["latent"] = "latent"


class Brush(Sampler):
    domains: ClassVar[frozenset[Domain]] = frozenset({"latent"})
    name: Literal["brush"] = "brush"


class Greedy(Sampler):
    domains: ClassVar[frozenset[Domain]] = frozenset({"causal"})
    name: Literal["greedy"] = "greedy"


def extra() -> list[EntryPoint]:
    def point(group: str, name: str, kind: type) -> EntryPoint:
        return EntryPoint(name=name, value=f"{__name__}:{kind.__name__}", group=f"strop.{group}")

    guidances = [("negative", Negative), ("plain", Plain), ("partnered", Partnered), ("latent", Latent)]
    samplers = [("brush", Brush), ("greedy", Greedy)]
    return [*(point("guidance", *pair) for pair in guidances), *(point("samplers", *pair) for pair in samplers)]


def config(**model: Any) -> Config:
    options = {
        "engine": "stub",
        "source": "stub",
        "context_length": CONTEXT,
        "max_rows": ROWS,
        "defaults": {"temperature": 0.5, "top_p": 0.9},
        **model,
    }
    return Config(
        server=ServerConfig(
            limits=Limits(n=8, prompts=4, messages=3, logprobs=5, stop=3, stop_chars=4, logit_bias=2, max_queue=6)
        ),
        models={"stub": ModelConfig.model_validate(options)},
        presets={"stub@negative": Preset(guidance="negative", sampler={"top_p": 0.1}, max_tokens=3)},
    )


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House(config(), plugins=stub_plugins(*extra()))
    await house.open()
    yield house
    await house.close(0)


def chat(*contents: str, **fields: Any) -> ChatRequest:
    messages = tuple({"role": "user", "content": content} for content in contents or ("hi",))
    return ChatRequest(**{"model": "stub", "messages": messages, **fields})


def completion(*prompts: str | tuple[int, ...], **fields: Any) -> CompletionRequest:
    return CompletionRequest(**{"model": "stub", "prompts": prompts or ("hi",), **fields})


def only(plans: list[TextPlan]) -> TextPlan:
    [plan] = plans
    return plan


async def test_a_chat_becomes_one_plan_with_every_default_filled_in(house: House) -> None:
    plan = only(resolve(chat("hi", tenant="t"), house))
    assert plan.prompt == tuple(StubTokenizer().chat(({"role": "user", "content": "hi"},)))
    assert plan.max_tokens == CONTEXT - len(plan.prompt)
    assert plan.sampler == Tokens(temperature=0.5, top_p=0.9)
    assert plan.stop_token_ids == (END,)
    assert (plan.model, plan.tenant, plan.guidance, plan.n) == ("stub", "t", None, 1)
    assert (plan.cost.rows, plan.cost.start, plan.cost.tokens) == (1, len(plan.prompt), CONTEXT)


async def test_each_prompt_becomes_a_plan_in_order(house: House) -> None:
    plans = resolve(completion("ab", (5, 6, 7)), house)
    assert [plan.prompt for plan in plans] == [(97, 98), (5, 6, 7)]
    assert len({plan.id for plan in plans}) == 2


async def test_seeds_are_kept_or_drawn(house: House) -> None:
    assert [plan.seed for plan in resolve(completion("a", "b", seed=-5), house)] == [-5, -5]
    drawn = {only(resolve(chat(), house)).seed for _ in range(8)}
    assert len(drawn) == 8
    assert all(0 <= seed < 2**63 for seed in drawn)


async def test_the_caller_s_options_win_over_the_model_s(house: House) -> None:
    plan = only(resolve(chat(sampler=Tokens(temperature=0)), house))
    assert plan.sampler == Tokens(temperature=0, top_p=0.9)


async def test_another_sampler_takes_nothing_from_the_defaults(house: House) -> None:
    assert only(resolve(chat(sampler=Greedy()), house)).sampler == Greedy()


async def test_a_preset_brings_its_choices_and_the_caller_still_wins(house: House) -> None:
    plan = only(resolve(chat(model="stub@negative", sampler=Tokens(temperature=1)), house))
    assert plan.sampler == Tokens(temperature=1, top_p=0.1)
    assert (plan.guidance, plan.max_tokens, plan.model) == (Negative(), 3, "stub")
    assert only(resolve(chat(model="stub@negative", guidance=Plain()), house)).guidance == Plain()


async def test_ignore_eos_keeps_only_the_caller_s_stop_ids(house: House) -> None:
    assert only(resolve(chat(stop_token_ids=(3, END, 3)), house)).stop_token_ids == (3, END)
    assert only(resolve(chat(stop_token_ids=(3,), ignore_eos=True), house)).stop_token_ids == (3,)


async def test_echo_asks_for_prompt_scores_only_with_logprobs(house: House) -> None:
    assert only(resolve(completion(echo=True, logprobs=0), house)).prompt_logprobs
    assert not only(resolve(completion(echo=True), house)).prompt_logprobs
    assert not only(resolve(completion(logprobs=0), house)).prompt_logprobs


async def test_a_prompt_may_fill_the_context_when_only_its_scores_are_wanted(house: House) -> None:
    plan = only(resolve(completion("x" * CONTEXT, echo=True, logprobs=1, max_tokens=0), house))
    assert (len(plan.prompt), plan.max_tokens) == (CONTEXT, 0)


async def test_n_choices_cost_n_rows_and_share_the_prompt(house: House) -> None:
    plan = only(resolve(completion("abcd", n=3, max_tokens=10), house))
    assert (plan.cost.rows, plan.cost.start, plan.cost.tokens) == (3, 4, 34)


async def test_the_base_network_plays_a_role_that_reads_a_prompt_of_its_own(house: House) -> None:
    plan = only(resolve(completion("abcd", guidance=Negative(), max_tokens=10), house))
    assert plan.prompts == {"uncond": tuple(b"not this")}
    assert (plan.cost.start, plan.cost.tokens) == (4 + 8, 4 + 8 + 2 * 10)


REFUSALS: list[tuple[Callable[[], ChatRequest | CompletionRequest], type[StropError], str | None]] = [
    (lambda: chat(model="stab"), ModelNotFound, "model"),
    (lambda: ChatRequest(model="stub", messages=()), InvalidRequest, "messages"),
    (lambda: chat(*"abcd"), InvalidRequest, "messages"),
    (lambda: CompletionRequest(model="stub", prompts=()), InvalidRequest, "prompt"),
    (lambda: completion(*"abcde"), InvalidRequest, "prompt"),
    (lambda: completion(""), InvalidRequest, "prompt"),
    (lambda: completion(()), InvalidRequest, "prompt"),
    (lambda: completion((ID,)), InvalidRequest, "prompt"),
    (lambda: completion((0, -1)), InvalidRequest, "prompt"),
    (lambda: chat(n=0), InvalidRequest, "n"),
    (lambda: chat(n=9), InvalidRequest, "n"),
    (lambda: chat(n=ROWS + 1), InvalidRequest, "n"),
    (lambda: completion(*"abc", n=4), InvalidRequest, "prompt"),
    (lambda: chat(logprobs=6), InvalidRequest, "logprobs"),
    (lambda: chat(logprobs=-1), InvalidRequest, "logprobs"),
    (lambda: chat(stop=("a", "b", "c", "d")), InvalidRequest, "stop"),
    (lambda: chat(stop=("",)), InvalidRequest, "stop"),
    (lambda: chat(stop=("abcde",)), InvalidRequest, "stop"),
    (lambda: chat(stop_token_ids=(1, 2, 3, 4)), InvalidRequest, "stop_token_ids"),
    (lambda: chat(stop_token_ids=(ID,)), InvalidRequest, "stop_token_ids"),
    (lambda: chat(seed=2**63), InvalidRequest, "seed"),
    (lambda: chat(max_tokens=0), InvalidRequest, "max_tokens"),
    (lambda: completion(max_tokens=0), InvalidRequest, "max_tokens"),
    (lambda: completion(max_tokens=-1, echo=True), InvalidRequest, "max_tokens"),
    (lambda: chat(min_tokens=-1), InvalidRequest, "min_tokens"),
    (lambda: chat(min_tokens=3, max_tokens=2), InvalidRequest, "min_tokens"),
    (lambda: chat(min_tokens=CONTEXT), InvalidRequest, "min_tokens"),
    (lambda: chat(max_tokens=CONTEXT), ContextTooLong, "max_tokens"),
    (lambda: completion("x" * CONTEXT), ContextTooLong, None),
    (lambda: completion("x" * (CONTEXT + 1)), ContextTooLong, "prompt"),
    (lambda: chat("x" * 33 * CONTEXT), ContextTooLong, "messages"),
    (lambda: completion((1,) * 33 * CONTEXT), ContextTooLong, "prompt"),
    (lambda: chat(sampler=Tokens(logit_bias={ID: 1.0})), InvalidRequest, "logit_bias"),
    (lambda: chat(sampler=Tokens(logit_bias={-1: 1.0})), InvalidRequest, "logit_bias"),
    (lambda: chat(sampler=Tokens(logit_bias={1: 1.0, 2: 1.0, 3: 1.0})), InvalidRequest, "logit_bias"),
    (lambda: chat(sampler=Brush()), InvalidOption, "sampler.name"),
    (lambda: chat(guidance=Latent()), InvalidOption, "guidance.name"),
    (lambda: chat(guidance=Partnered()), InvalidOption, "guidance"),
]


@pytest.mark.parametrize("case", range(len(REFUSALS)))
async def test_refusals_name_the_field_and_are_counted(house: House, case: int) -> None:
    make, kind, param = REFUSALS[case]
    with pytest.raises(kind) as refusal:
        resolve(make(), house)
    assert type(refusal.value) is kind
    assert refusal.value.param == param
    assert f'strop_refusals_total{{code="{refusal.value.code}"}} 1.0' in house.metrics.render().decode()


async def test_refusals_say_what_would_be_valid(house: House) -> None:
    with pytest.raises(InvalidOption, match="valid: negative, partnered, plain"):
        resolve(chat(guidance=Latent()), house)
    with pytest.raises(ContextTooLong, match=f"max_tokens {CONTEXT} .* {CONTEXT} tokens a choice .* leaves {CONTEXT - 4}"):
        resolve(chat(max_tokens=CONTEXT), house)


async def test_a_text_with_tokens_that_the_network_lacks_is_refused(house: House) -> None:
    class Larger(StubTokenizer):
        def encode(self, text: str, *, special: bool = True) -> list[int]:
            return [ID]

    class Other:
        config, plugins, metrics = house.config, house.plugins, house.metrics

        def find(self, name: str) -> Any:
            return replace(house.find(name), tokenizer=Larger())

    with pytest.raises(InvalidRequest, match=f"prompt: {ID} is no token id"):
        resolve(completion("<extra>"), Other())  # type: ignore[arg-type]


async def test_a_long_prompt_is_refused_before_it_is_tokenised(house: House) -> None:
    class Untouchable:
        def encode(self, text: str) -> list[int]:
            raise AssertionError("tokenised")

    class Other:
        config, plugins, metrics = house.config, house.plugins, house.metrics

        def find(self, name: str) -> Any:
            return replace(house.find(name), tokenizer=Untouchable())

    with pytest.raises(ContextTooLong, match="characters"):
        resolve(completion("x" * 33 * CONTEXT), Other())  # type: ignore[arg-type]


async def test_the_cache_bounds_what_all_choices_take_together() -> None:
    house = House(config(context_length=6000), plugins=stub_plugins(*extra()))
    await house.open()
    try:
        plan = only(resolve(completion("abcd", n=4), house))
        assert plan.cost.tokens <= CACHE
        assert plan.max_tokens == (CACHE - 4) // 4
        guided = only(resolve(completion("abcd", n=4, guidance=Negative()), house))
        assert guided.max_tokens == (CACHE - 4 - 8) // 8
        with pytest.raises(ContextTooLong, match=f"caches {CACHE} in all"):
            resolve(completion("abcd", n=4, max_tokens=3000), house)
    finally:
        await house.close(0)


async def test_the_model_s_own_answer_length_is_the_default_and_no_limit() -> None:
    house = House(config(max_tokens=5), plugins=stub_plugins(*extra()))
    await house.open()
    try:
        assert only(resolve(chat(), house)).max_tokens == 5
        assert only(resolve(chat(max_tokens=9), house)).max_tokens == 9
    finally:
        await house.close(0)
