from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from strop.samplers.tokens import TokenRow, Tokens, draw, reshape

V = 50


def row(*, seed: int = 0, prompt: list[int] | None = None, drawn: tuple[int, ...] = (), **options: object) -> TokenRow:
    state = Tokens(**options).start(prompt or [], seed=seed)  # type: ignore[arg-type]
    for token in drawn:
        state.accept(token)
    return state


def logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(V, generator=torch.Generator().manual_seed(seed)) * 3


def test_penalties_and_bias_against_their_formulas() -> None:
    x = logits()
    state = row(
        prompt=[1, 2],
        drawn=(3, 3, 4),
        presence_penalty=0.5,
        frequency_penalty=0.25,
        repetition_penalty=2.0,
        logit_bias={5: 7.0, 6: -100.0},
    )
    expected = x.tolist()
    for token in (1, 2, 3, 4):
        expected[token] = expected[token] / 2 if expected[token] > 0 else expected[token] * 2
    expected[3] -= 0.5 + 0.25 * 2
    expected[4] -= 0.5 + 0.25 * 1
    expected[5] += 7
    expected[6] -= 100
    torch.testing.assert_close(reshape(x, state), torch.tensor(expected))


def test_what_is_banned_or_not_allowed_is_never_drawn() -> None:
    state = row(temperature=0.0)
    x = logits()
    best = x.argsort(descending=True).tolist()
    state.banned = tuple(best[:2])
    assert draw(x[None], [state]).tolist() == [best[2]]
    state.allowed = torch.zeros(V, dtype=torch.bool)
    state.allowed[best[9]] = True
    assert draw(x[None], [state]).tolist() == [best[9]]
    state.allowed[:] = False
    assert draw(x[None], [state]).tolist() == [-1]


def test_bias_can_force_a_token() -> None:
    assert draw(logits()[None], [row(logit_bias={17: 100.0}, seed=3)]).tolist() == [17]


def test_greedy_rows_ignore_the_seed_and_others_follow_it() -> None:
    x = logits().expand(2, V)
    assert len(set(draw(x, [row(temperature=0.0, seed=1), row(temperature=0.0, seed=2)]).tolist())) == 1
    seeds = draw(logits().expand(64, V), [row(seed=s) for s in range(64)]).tolist()
    assert len(set(seeds)) > 1
    assert seeds == draw(logits().expand(64, V), [row(seed=s) for s in range(64)]).tolist()


def test_a_row_draws_the_same_alone_and_among_others_with_other_options() -> None:
    mates = [row(seed=9, temperature=0.3, top_k=3), row(seed=5, drawn=(1, 2), presence_penalty=1.0), row(temperature=0.0)]
    alone = [draw(logits(i)[None], [mate]).item() for i, mate in enumerate(mates)]
    together = draw(torch.stack([logits(i) for i in range(3)]), mates).tolist()
    assert together == alone


def test_position_moves_the_noise() -> None:
    flat = torch.zeros(1, V)
    state = row(seed=1)
    drawn = []
    for _ in range(20):
        drawn.append(int(draw(flat, [state])))
        state.accept(drawn[-1])
    assert len(set(drawn)) > 5


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_k": -1},
        {"top_k": 2**31},
        {"min_p": 2},
        {"logit_bias": {1: 101}},
        {"repetition_penalty": 0},
        {"typo": 1},
    ],
)
def test_values_out_of_bounds_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Tokens(**bad)  # type: ignore[arg-type]
