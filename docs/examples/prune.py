"""Prune in one process, without Hydra, MLflow and Ray: python prune.py MODEL TEXT OUTPUT.

It takes the steps that `multipruner prune calibration=text` takes with the same settings.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pruning.calibration.build import make_calibration
from pruning.calibration.spec import CalibrationSpec
from pruning.costs.accounting import Accounting
from pruning.export.folder import Export, write_export
from pruning.importance.channel_order import ChannelOrder
from pruning.models.checkpoint import Checkpoint
from pruning.models.find import find_checkpoint
from pruning.scoring.score import BatchScore, ShapeScore, perplexity
from pruning.search.greedy import GreedySearch
from pruning.search.settings import SearchSettings
from workers.pool.inline_pool import InlinePool
from workers.tasks import EvaluatorSpec, OrderTask, ScoreResult, ScoreTask

BATCH_SIZE = 2


def prune(checkpoint: Checkpoint, text: Path, ratio: float) -> tuple[GreedySearch, ChannelOrder]:
    """A search that has met its target, and the order in which its shape counts channels."""
    accounting = Accounting(checkpoint.config())
    settings = SearchSettings.resolved(accounting.geometry, target_ratio=ratio)
    search = GreedySearch(accounting, settings)
    spec = CalibrationSpec("text", 6, 4, 0, sequence_length=128, seed=42, path=str(text))
    vocab_size = checkpoint.config().vocab_size
    sets = make_calibration(spec, checkpoint.tokenizer, vocab_size=vocab_size).sets()
    tokens = {str(name): token_set.input_ids for name, token_set in sets.items()}
    with InlinePool(EvaluatorSpec(checkpoint, "float32", tokens, BATCH_SIZE)) as pool:
        [[(_, order)]] = pool.run([OrderTask(settings.importance)])
        assert isinstance(order, ChannelOrder)
        pool.set_order(order)
        while (stage := search.stage) is not None:
            name, base, candidates = stage.token_set, search.shape.text, search.propose()
            batches = range(len(sets[name].batches(BATCH_SIZE)))
            tasks = [ScoreTask(name, i, base, candidates, order.fingerprint) for i in batches]
            scores = {}
            for [(task, result)] in pool.run(tasks):  # a task may be answered in parts
                assert isinstance(task, ScoreTask)
                assert isinstance(result, ScoreResult)
                for candidate, nll in zip(task.candidates, result.nll, strict=True):
                    scores[candidate, task.batch] = BatchScore(nll, result.num_tokens)
            search.observe(
                {c: ShapeScore.of(scores[c, i] for i in batches).nll for c in candidates}
            )
    return search, order


def main() -> None:
    """Prints the trajectory and writes a checkpoint that transformers opens."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="a folder, a .gguf file, or a hub id")
    parser.add_argument("text", type=Path)
    parser.add_argument("output", type=Path, help="a folder that is not there yet")
    parser.add_argument("--ratio", type=float, default=0.1, help="removed / all parameters")
    args = parser.parse_args()

    checkpoint = find_checkpoint(args.model)
    search, order = prune(checkpoint, args.text, args.ratio)
    for step in search.steps:
        print(f"{step.ratio:.4f} {step.removal}: perplexity {perplexity(step.nll)}")
    about = {"model": {"name": args.model, "hub_id": None}}
    export = Export(
        checkpoint,
        search.accounting,
        search.shape,
        order,
        "transformers",
        "auto",
        about,
        options={},
    )
    print(args.output, write_export(export, args.output)["status"])


if __name__ == "__main__":
    main()
