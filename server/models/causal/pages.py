"""Which page of the KV cache holds what: reference counts, and the prefixes that full pages remember.

A full page is known by (the node of the page before it, its tokens); nodes are fresh integers, so the keys form a trie and a
match is exact, never a hash that could collide. The first page's parent is the tenant, which keeps one API key's prompts from
being seen through another's timing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TypeAlias

from strop.kernels.paged_attention import PAGE

Node: TypeAlias = int | str
"""Where a prefix ends: a tenant before the first page, then a number per remembered page."""


@dataclass(slots=True)
class Chain:
    """The pages of one sequence, in order. `node` is the end of what is remembered: its first `known` pages."""

    node: Node
    pages: list[int] = field(default_factory=list)
    known: int = 0


class Pages:
    """Hands out page ids 0 … total-1. Pages nobody uses keep what they hold until they are needed, oldest first."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._blank = list(range(total - 1, -1, -1))
        self._users = [0] * total
        self._nodes = count()
        self._known: dict[tuple[Node, tuple[int, ...]], tuple[int, Node]] = {}
        self._key: dict[int, tuple[Node, tuple[int, ...]]] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def free(self) -> int:
        """Pages that `extend` can still give, remembered ones nobody uses included."""
        return len(self._blank) + len(self._idle)

    def match(self, tokens: Sequence[int], *, tenant: str) -> Chain:
        """A chain over the longest remembered prefix of `tokens` in full pages, leaving at least one token to compute."""
        chain = Chain(f"tenant {tenant}")
        while (len(chain.pages) + 1) * PAGE < len(tokens):
            start = len(chain.pages) * PAGE
            found = self._known.get((chain.node, tuple(tokens[start : start + PAGE])))
            if found is None:
                break
            page, chain.node = found
            self._use(page)
            chain.pages.append(page)
        chain.known = len(chain.pages)
        return chain

    def extend(self, chain: Chain, tokens: int) -> bool:
        """Give `chain` pages for `tokens` tokens in all. False, with nothing changed, when too few are free."""
        missing = -(-tokens // PAGE) - len(chain.pages)
        if missing > self.free:
            return False
        for _ in range(missing):
            chain.pages.append(self._take())
        return True

    def remember(self, chain: Chain, tokens: Sequence[int], computed: int) -> None:
        """Make the pages that `computed` tokens have filled findable by later sequences."""
        while (chain.known + 1) * PAGE <= computed:
            start = chain.known * PAGE
            key = (chain.node, tuple(tokens[start : start + PAGE]))
            page = chain.pages[chain.known]
            if key in self._known:
                chain.node = self._known[key][1]
            else:
                chain.node = next(self._nodes)
                self._known[key] = (page, chain.node)
                self._key[page] = key
            chain.known += 1

    def fork(self, chain: Chain, computed: int) -> tuple[Chain, int | None]:
        """A chain that shares `chain`'s full pages. The second value is the page to copy into a page of its own, if any."""
        full = computed // PAGE
        copy = Chain(chain.node, chain.pages[:full], min(chain.known, full))
        for page in copy.pages:
            self._use(page)
        return copy, chain.pages[full] if computed % PAGE else None

    def release(self, chain: Chain) -> None:
        """Give all pages of `chain` back, its end first, so that the beginnings that others may share stay longest."""
        for page in reversed(chain.pages):
            self._users[page] -= 1
            if self._users[page] == 0:
                if page in self._key:
                    self._idle[page] = None
                else:
                    self._blank.append(page)
        chain.pages.clear()
        chain.known = 0

    def _use(self, page: int) -> None:
        self._idle.pop(page, None)
        self._users[page] += 1

    def _take(self) -> int:
        if self._blank:
            page = self._blank.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            del self._known[self._key.pop(page)]
        self._users[page] = 1
        return page
