"""`python -m experiments.multipruner`: the counts of every published run, one line each.

Exit status 1 where one does not come out.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from hydra import compose, initialize_config_dir
from rich import box
from rich.console import Console
from rich.table import Table

from pipelines.config.overrides import CONF
from pipelines.config.reproduce import ReproduceConfig
from pipelines.config.schemas import register
from pipelines.reproduce.counts import count_checks
from pipelines.reproduce.verdict import Check

FOLDERS = ("multipruner", "blockpruner", "shortgpt")


def checks_of(name: str) -> list[Check]:
    """What `pipelines.reproduce experiment=NAME mode=counts` checks."""
    with initialize_config_dir(str(CONF), version_base=None):
        return count_checks(
            ReproduceConfig.given_with(compose("reproduce", overrides=[f"experiment={name}"]), [])
        )


def row(name: str, checks: Mapping[str, Check]) -> list[str]:
    """One line: what was counted and how far off the published counts that is, what the shape
    implies, and how many of the checks are within.
    """
    dense, pruned = checks["parameters, dense"], checks["parameters, pruned"]
    ratio = next(check for quantity, check in checks.items() if quantity.startswith("ratio"))
    evaluations = [
        checks.get(f"evaluations, {stage}")
        for stage in ("blocks", "MLP channels", "attention heads")
    ]
    implied = ", ".join(
        str(check.expected)
        for check in evaluations
        if check is not None and check.expected is not None
    )
    verdicts = [check.verdict for check in checks.values()]
    differences = [check.difference for check in (dense, pruned) if check.difference is not None]
    off = [f"{sum(map(abs, differences)):,}"]
    counted = [
        ", ".join(
            f"{verdicts.count(verdict)} {verdict}"
            for verdict in ("within", "outside", "not checked")
            if verdict in verdicts
        )
    ]
    measured = f"{ratio.measured:.5f}" if isinstance(ratio.measured, float) else ""
    return [
        name,
        *(f"{check.measured:,}" if check.measured is not None else "" for check in (dense, pruned)),
        *off,
        measured,
        implied,
        *counted,
    ]


def main() -> None:
    """Checks all of them."""
    register()
    shown = Table(box=box.MARKDOWN)
    for column in (
        "experiment",
        "parameters, dense",
        "pruned",
        "off by",
        "ratio",
        "evaluations: blocks, channels, heads",
        "checks",
    ):
        shown.add_column(
            column, justify="left" if column in ("experiment", "checks") else "right", no_wrap=True
        )
    outside = []
    for folder in FOLDERS:
        for path in sorted((CONF / "experiment" / folder).glob("*.yaml")):
            name = f"{folder}/{path.stem}"
            checks = {check.quantity: check for check in checks_of(name)}
            shown.add_row(*row(name, checks))
            outside += [
                f"{name}: {quantity}"
                for quantity, check in checks.items()
                if check.verdict == "outside"
            ]
    Console(width=200).print(shown)
    sys.exit("\n".join(["outside:", *outside]) if outside else None)


if __name__ == "__main__":
    main()
