"""`make mutants`: how many small harmful changes the tests see.

A sample of the mutants of the modules in `modules.yaml` is run, in an order that the seed draws.
Those that survive, or crash the tests, are either in `survivors.yaml`, with the reason, or make
this end with status 1. So do mutants that were not run.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from tests.mutation import runner
from tests.mutation.mutants import Mutant, mutants

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def main() -> int:
    arguments = _arguments()
    tests: dict[str, list[str]] = yaml.safe_load((HERE / "modules.yaml").read_text())
    explained: dict[str, dict[str, str]] = yaml.safe_load((HERE / "survivors.yaml").read_text())
    everything = [mutant for module in sorted(tests) for mutant in of_module(module)]
    stale = stale_reasons(explained)
    chosen = _sample(
        [each for each in everything if each.module.startswith(arguments.only)],
        arguments.sample,
        arguments.seed,
        arguments.name,
    )
    print(f"{len(chosen)} of {len(everything)} mutants in {len(tests)} modules", flush=True)
    verdicts, num_unfit = _run(chosen, tests, arguments)
    if missing := unlisted(tests):
        print("\nnot in modules.yaml:", *missing, sep="\n  ")
    status = _report(verdicts, explained, stale) or bool(missing)
    num_late = len(chosen) - len(verdicts) - num_unfit
    if num_late or num_unfit:
        print(f"\nnot run: {num_late} for time, {num_unfit} whose tests fail without a mutant")
    return int(status or num_late or num_unfit)


def of_module(module: str) -> list[Mutant]:
    """Its mutants; none of a file that is gone."""
    path = ROOT / module
    return mutants(module, path.read_text(encoding="utf-8")) if path.is_file() else []


def unlisted(tests: Mapping[str, Sequence[str]]) -> list[str]:
    """Modules of `pruning`, without export, that have mutants and no tests in `modules.yaml`."""
    names = (str(path.relative_to(ROOT)) for path in (ROOT / "pruning").rglob("*.py"))
    return sorted(
        name
        for name in names
        if name not in tests and "export" not in Path(name).parts and of_module(name)
    )


def stale_reasons(explained: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Reasons in `survivors.yaml` of mutants that are no more."""
    return sorted(
        f"{module}: {name}"
        for module, names in explained.items()
        for name in set(names) - {each.name for each in of_module(module)}
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make mutants ARGS=...", description=__doc__)
    parser.add_argument("--sample", type=int, help="how many mutants, drawn at random (all)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw and its order (0)")
    parser.add_argument("--minutes", type=float, default=60, help="none starts after this (60)")
    parser.add_argument("--jobs", type=int, default=1, help="at a time (1)")
    parser.add_argument("--only", default="", help="modules whose path begins so")
    parser.add_argument("--name", default="", help="mutants whose name holds this text")
    return parser.parse_args()


def _sample(mutants: list[Mutant], size: int | None, seed: int, name: str) -> list[Mutant]:
    """In the order that they are run in, which is drawn, too: of what there is no time for, no
    module has more than its share.
    """
    found = [mutant for mutant in mutants if name in mutant.name]
    return random.Random(seed).sample(found, min(len(found), len(found) if size is None else size))


def _run(
    chosen: list[Mutant], tests: dict[str, list[str]], arguments: argparse.Namespace
) -> tuple[list[runner.Verdict], int]:
    """What came of them, and how many were left out since their tests are not fit."""
    runner.warm_up()
    seconds = {}
    lists = sorted({tuple(tests[mutant.module]) for mutant in chosen})
    for files, found in runner.baselines(lists, jobs=arguments.jobs):
        names = " ".join(files)
        if isinstance(found, str):
            print(f"left out, since these fail without a mutant: {names}:\n{found}", flush=True)
        else:
            seconds[files] = found
            print(f"{found:6.1f} s  {names}", flush=True)
    verdicts = []
    queue = [
        (mutant, tests[mutant.module], seconds[tuple(tests[mutant.module])])
        for mutant in chosen
        if tuple(tests[mutant.module]) in seconds
    ]
    until = time.monotonic() + 60 * arguments.minutes
    for verdict in runner.run(queue, jobs=arguments.jobs, until=until):
        verdicts.append(verdict)
        mutant = verdict.mutant
        print(
            f"{verdict.seconds:6.1f} s  {verdict.outcome:8}  {mutant.module}:{mutant.line} "
            f"{mutant.name}  {verdict.by}",
            flush=True,
        )
    return verdicts, len(chosen) - len(queue)


def _report(
    verdicts: list[runner.Verdict], explained: dict[str, dict[str, str]], stale: list[str]
) -> int:
    modules: dict[str, Counter[str]] = {}
    unexplained: dict[str, list[str]] = {"survived": [], "crashed": []}
    for verdict in verdicts:
        mutant, outcome = verdict.mutant, verdict.outcome
        if outcome in unexplained:
            if mutant.name in explained.get(mutant.module, {}):
                outcome = "explained"
            else:
                unexplained[outcome].append(f"{mutant.module}:{mutant.line}\n    {mutant.name}")
        modules.setdefault(mutant.module, Counter())[outcome] += 1
    print("\nkilled  hung   of  explained  module")
    for module, counts in sorted(modules.items()):
        print(
            f"{counts['killed']:6}  {counts['hung']:4}  {counts.total():3}  "
            f"{counts['explained']:9}  {module}"
        )
    total: Counter[str] = sum(modules.values(), Counter())
    killed = total["killed"] + total["hung"]
    print(
        f"\n{killed} of {len(verdicts)} killed: {killed / max(len(verdicts), 1):.1%}, "
        f"{total['hung']} of them by the time limit"
    )
    for outcome, found in unexplained.items():
        if found:
            print(f"\n{outcome}, and not in survivors.yaml:", *sorted(found), sep="\n  ")
    if stale:
        print("\nin survivors.yaml, but no such mutant:", *stale, sep="\n  ")
    return 1 if any(unexplained.values()) or stale or not verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
