"""How well the table of an allocation chooses on text that it has not seen:
`python -m experiments.table_text RUN`.

From a part of the sequences that the first table of a run was measured on, it solves for the run's
target, and sums what the rest of the sequences measured of the sizes that were chosen. No model
runs: the store of the run has the score of every sequence. Where the changes of single blocks add
up, the sum on the rest is what the choice gains on unseen text.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from pipelines.runs.files import ALLOCATION
from pipelines.runs.saved_run import PastRun, read_run
from pipelines.store.scores import Context, ScoreStore
from pruning.errors import InputError
from pruning.scoring.arithmetic import Arithmetic
from pruning.scoring.score import ShapeScore
from pruning.search.allocation import Block, Limit, Sensitivities, resized, size_of, solve
from pruning.search.allocation_result import Allocation
from pruning.search.prediction import MeasuredRound
from pruning.shape import ModelShape

Changes = Mapping[Block, Mapping[int, Sequence[float]]]
"""By block and size, the change that each sequence measured, in nats per token."""


@dataclass(frozen=True, slots=True)
class Draws:
    """Mean and standard error over draws of the sequences that a shape was chosen on, in nats per
    token: predicted on these, and on the others. Draws share sequences, so that the error over
    texts is larger.
    """

    seen: float
    unseen: float
    stderr: float


def main() -> int:
    """Prints a row for each number of sequences. Returns the exit status: 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--draws", type=int, default=36, help="at most, of each number")
    given = parser.parse_args()
    try:
        run = read_run(given.run)
        base, changes = changes_of(run)
        ratio = run.config.search.target_ratio
        if ratio is None:
            raise InputError(f"{run.folder}: it has no search.target_ratio to solve for")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    limit = Limit.of_parameters(run.accounting, ratio)
    [count] = {len(each) for sizes in changes.values() for each in sizes.values()}
    for name, table in {"all sizes": changes, "outermost sizes": outermost(base, changes)}.items():
        print(f"{name}: predicted change of KL, on the sequences that chose and on the others")
        for number in range(1, count):
            found = draw(base, table, limit, number, count, given.draws)
            print(f"  {number:3}  {found.seen:+.4f}  {found.unseen:+.4f} +- {found.stderr:.4f}")
    return 0


def changes_of(run: PastRun) -> tuple[ModelShape, Changes]:
    """The first table of a run, sequence by sequence.

    Raises:
        InputError: the run has no table, or its store not all scores of it.
    """
    path = run.folder / ALLOCATION
    if not path.exists():
        raise InputError(f"{run.folder}: no {ALLOCATION}; give a run of search=allocation")
    table = MeasuredRound.of(1, Allocation.load(path).rounds[0]).table
    sizes = {
        (block, size): resized(table.base, block, size)
        for block, found in table.changes.items()
        for size in found
    }
    identity, [span, *_] = run.record["identity"], run.record["arithmetic"]
    context = Context(
        model=identity["model"],
        order=run.record["channel_order"],
        dtype=identity["model.dtype"],
        batch_size=identity["calibration.batch_size"],
        arithmetic=Arithmetic(**{key: span[key] for key in span if key != "from_step"}),
        tokens=identity["calibration.block"],
        kind="kl",
    )
    with ScoreStore(run.config.store.url) as store:
        found = store.lookup(context, {shape.digest for shape in sizes.values()})
    batches = sorted({batch for _, batch in found})
    wanted = {(shape.digest, batch) for shape in sizes.values() for batch in batches}
    if not wanted or not wanted <= found.keys():
        raise InputError(f"{run.folder}: {run.config.store.url} has not all scores of its table")
    scores = {
        key: ShapeScore.of(found[shape.digest, batch] for batch in batches)
        for key, shape in sizes.items()
    }
    whole = ShapeScore.of(found[table.base.digest, batch] for batch in batches)
    changes: dict[Block, dict[int, list[float]]] = {}
    for (block, size), score in scores.items():
        pairs = zip(score.nll_per_sequence, whole.nll_per_sequence, strict=True)
        changes.setdefault(block, {})[size] = [(a - b) / whole.num_tokens for a, b in pairs]
    return table.base, changes


def outermost(base: ModelShape, changes: Changes) -> Changes:
    """Without the sizes between the own one of a block and the one that is farthest on its side."""
    return {
        block: {
            size: each
            for size, each in sizes.items()
            if size in (size_of(base, block), min(sizes), max(sizes))
        }
        for block, sizes in changes.items()
    }


def draw(
    base: ModelShape, changes: Changes, limit: Limit, number: int, count: int, most: int
) -> Draws:
    """Chooses on so many sequences at a time, always on the same ones."""
    parts = list(itertools.combinations(range(count), number))
    random.Random(0).shuffle(parts)
    seen, unseen = [], []
    for part in parts[:most]:
        means = {
            block: {size: fmean(each[i] for i in part) for size, each in sizes.items()}
            for block, sizes in changes.items()
        }
        solution = solve(Sensitivities(base, means), [limit])
        rest = [i for i in range(count) if i not in part]
        chosen = [sizes[size_of(solution.shape, block)] for block, sizes in changes.items()]
        seen.append(solution.predicted)
        unseen.append(sum(fmean(each[i] for i in rest) for each in chosen))
    return Draws(fmean(seen), fmean(unseen), stdev(unseen) / len(unseen) ** 0.5)


if __name__ == "__main__":
    sys.exit(main())
