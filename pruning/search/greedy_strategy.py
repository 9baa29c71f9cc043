"""The published search as a strategy: every candidate is scored, or those that are likely."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pruning.costs.accounting import Accounting
from pruning.search.bounds import bounded_search
from pruning.search.greedy import GreedySearch
from pruning.search.lazy import LazySearch, at_most
from pruning.search.plan import SearchPlan, compared_blocks, plan_search
from pruning.search.strategy import Measured, Strategy


class GreedyStrategy(Strategy):
    """Candidates are scored, the best goes."""

    name = "greedy"
    method = (
        "the greedy search of MultiPruner ([arXiv 2501.09949](https://arxiv.org/abs/2501.09949)), "
        "which takes away, step by step, what raises the perplexity of a calibration text least"
    )
    any_cost = True
    compares_candidates = True

    @property
    def label(self) -> str:
        """The distribution, such as `44:52:4`, and what is otherwise than published."""
        shares = ":".join(f"{share:g}" for share in self.settings.distribution)
        shares += "" if self.settings.lazy is None else " lazy"
        return shares if self.settings.judged_by == "score" else f"{shares} per cost"

    def search(self, accounting: Accounting, measured: Measured) -> GreedySearch:
        kind = GreedySearch if self.settings.lazy is None else LazySearch
        return kind(accounting, self.settings)

    def planned(self, accounting: Accounting) -> SearchPlan:
        plan = (
            bounded_search(accounting, self.settings)
            if self.settings.targets
            else plan_search(accounting, self.settings, compared_blocks)
        )
        return plan if self.settings.lazy is None else at_most(plan)

    def _own_identity(self) -> dict[str, Any]:
        """Nothing of a search that scores every candidate and takes the lowest score, as in folders
        from before there was a choice.
        """
        own: dict[str, Any] = {}
        if self.settings.judged_by != "score":
            own["search.judged_by"] = self.settings.judged_by
        if self.settings.lazy is not None:
            lazy = asdict(self.settings.lazy)
            own |= {"search.selection": "lazy"}
            own |= {f"search.lazy.{name}": value for name, value in lazy.items()}
        return own
