"""The figures of a chaos run, as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from tests.chaos.drivers import KilledDriver
from tests.chaos.figures import Effect, Figures
from tests.chaos.leaks import Holdings
from tests.chaos.plan import EXPLANATIONS


def report(figures: Figures, killed: Sequence[KilledDriver] = ()) -> str:
    """Candidates retried, evaluators replaced, drivers rebuilt, and seconds beyond those of an
    undisturbed search, which faults of one search share.
    """
    names = ("injected", "retried", "evaluators", "drivers", "s lost")
    header = f"{'fault':<15}" + "".join(f"{name:>11}" for name in names)
    rows = [_row(name, figures.effects[name]) for name in EXPLANATIONS if name in figures.effects]
    total = Effect()
    for effect in figures.effects.values():
        for field in fields(Effect):
            setattr(total, field.name, getattr(total, field.name) + getattr(effect, field.name))
    if killed:
        rows.append(
            _row(
                "driver killed",
                Effect(len(killed), 0, 0, len(killed), sum(driver.seconds for driver in killed)),
            )
        )
    lines = [header, *rows, _row("all in process", total)]
    lines.append(
        f"{figures.searches} searches, {figures.steps} steps, {figures.evaluations} evaluations, "
        f"{figures.lost_evaluations} of them lost and done again, "
        f"{figures.speculative_tasks} tasks run speculatively, "
        f"{figures.evaluators} evaluators started, {figures.seconds:.0f} s"
    )
    lines += [
        f"driver killed with {driver.stored} scores stored, after {driver.seconds:.0f} s; "
        f"its {driver.processes} processes were gone {driver.gone_after_s:.0f} s later"
        for driver in killed
    ]
    names = [field.name for field in fields(Holdings)]
    lines += [
        f"held {when:<7}"
        + ", ".join(f"{getattr(held, name):,} {name.replace('_', ' ')}" for name in names)
        for when, held in figures.holdings
    ]
    return "\n".join(lines)


def _row(name: str, effect: Effect) -> str:
    counts = (effect.injected, effect.retried, effect.replaced, effect.drivers)
    cells = "".join(f"{count:>11}" for count in counts) + f"{effect.seconds:>11.1f}"
    return f"{name:<15}{cells}   {EXPLANATIONS.get(name, '')}"
