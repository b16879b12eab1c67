from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from strop.kernels.paged_attention import PAGE
from strop.server.models.causal.pages import Chain, Pages

TOTAL = 12


def grow(pages: Pages, tokens: list[int], tenant: str = "") -> Chain:
    """A sequence whose tokens are all computed."""
    chain = pages.match(tokens, tenant=tenant)
    assert pages.extend(chain, len(tokens))
    pages.remember(chain, tokens, len(tokens))
    return chain


def test_a_prefix_is_found_in_full_pages_and_leaves_a_token_to_compute() -> None:
    pages = Pages(TOTAL)
    tokens = list(range(3 * PAGE))
    first = grow(pages, tokens)
    assert pages.match(tokens, tenant="").pages == first.pages[:2]
    assert pages.match([*tokens, 1], tenant="").pages == first.pages
    assert pages.match([*tokens[: PAGE + 3], 7], tenant="").pages == first.pages[:1]
    assert pages.match([9, *tokens], tenant="").pages == []


def test_another_tenant_finds_nothing() -> None:
    pages = Pages(TOTAL)
    tokens = list(range(3 * PAGE))
    grow(pages, tokens, "a")
    assert pages.match(tokens, tenant="b").pages == []


def test_released_pages_are_found_until_they_are_needed_oldest_end_first() -> None:
    pages = Pages(4)
    old, new = list(range(2 * PAGE)), list(range(100, 100 + PAGE + 1))
    pages.release(grow(pages, old))
    assert pages.free == 4
    held = grow(pages, new)
    assert len(pages.match([*old, 1], tenant="").pages) == 2
    again = Pages(3)
    again.release(grow(again, old))
    grow(again, new)
    assert len(again.match([*old, 1], tenant="").pages) == 1
    assert held.pages != []


def test_extend_takes_all_or_nothing() -> None:
    pages = Pages(2)
    chain = pages.match([], tenant="")
    assert not pages.extend(chain, 3 * PAGE)
    assert chain.pages == []
    assert pages.free == 2


@pytest.mark.parametrize("computed", [PAGE, PAGE + 5, 2 * PAGE])
def test_a_fork_shares_full_pages_and_names_the_partial_one(computed: int) -> None:
    pages = Pages(TOTAL)
    tokens = list(range(computed))
    chain = grow(pages, tokens)
    fork, partial = pages.fork(chain, computed)
    assert fork.pages == chain.pages[: computed // PAGE]
    assert partial == (chain.pages[-1] if computed % PAGE else None)
    pages.release(chain)
    assert pages.free == TOTAL - len(fork.pages)


class Sharing(RuleBasedStateMachine):
    """Random growing, forking and releasing: no page serves two contents, and no page is lost."""

    chains = Bundle("chains")

    def __init__(self) -> None:
        super().__init__()
        self.pages = Pages(TOTAL)
        self.held: list[tuple[Chain, tuple[int, ...]]] = []

    @rule(target=chains, tokens=st.lists(st.integers(0, 1), min_size=1, max_size=5 * PAGE), tenant=st.sampled_from("ab"))
    def start(self, tokens: list[int], tenant: str) -> int:
        tokens = [t for t in tokens for _ in range(4)]
        chain = self.pages.match(tokens, tenant=tenant)
        if self.pages.extend(chain, len(tokens)):
            self.pages.remember(chain, tokens, len(tokens))
        else:
            self.pages.release(chain)
        self.held.append((chain, (ord(tenant), *tokens)))
        return len(self.held) - 1

    @rule(at=consumes(chains))
    def stop(self, at: int) -> None:
        self.pages.release(self.held[at][0])

    @invariant()
    def nothing_is_lost(self) -> None:
        used = {page for chain, _ in self.held for page in chain.pages}
        assert self.pages.free == TOTAL - len(used)

    @invariant()
    def a_shared_page_holds_the_same_tokens(self) -> None:
        content: dict[int, tuple[int, ...]] = {}
        for chain, (tenant, *tokens) in self.held:
            for i, page in enumerate(chain.pages):
                seen = (tenant, *tokens[: (i + 1) * PAGE])
                assert content.setdefault(page, seen) == seen


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4 * PAGE))
def test_a_match_is_always_a_true_prefix(tokens: list[int]) -> None:
    pages = Pages(TOTAL)
    chain = grow(pages, tokens)
    other = pages.match([*tokens, 5], tenant="")
    assert other.pages == chain.pages[: len(tokens) // PAGE]
