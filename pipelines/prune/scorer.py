"""Scores of candidates: from the store, else from the evaluators."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pipelines.store.scores import BatchScore, Context, ScoreStore
from pruning.calibration.token_sets import Calibration, SetName
from pruning.shape import ModelShape
from workers.pool.protocol import Pool
from workers.tasks import Candidate, ScoreResult, ScoreTask


class OnEvaluation(Protocol):
    """Told how many candidates got done, in fractions where a candidate has several batches, and
    whether they were scored or in the store.

    Called about every second, with 0 candidates if none got done.
    """

    def __call__(self, candidates: float, *, scored: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class ShapeScore:
    """NLL of one shape on one set: `nll_per_sequence` in nats summed over `num_tokens` predicted
    tokens of each sequence.
    """

    nll_per_sequence: tuple[float, ...]
    num_tokens: int

    @property
    def nll(self) -> float:
        """Mean NLL in nats per token.

        Sequences are added in their order, so the result has the same bits wherever it was
        computed.
        """
        return sum(self.nll_per_sequence) / (len(self.nll_per_sequence) * self.num_tokens)

    def stderr_of_difference(self, other: ShapeScore) -> float | None:
        """Standard error of `self.nll - other.nll` over the sequences, paired: both shapes saw the
        same text, so what its difficulty adds cancels.

        None where there is one sequence only, or a score is not finite. `fsum` rounds once, so the
        bits depend on neither order nor Python.
        """
        pairs = zip(self.nll_per_sequence, other.nll_per_sequence, strict=True)
        differences = [(mine - theirs) / self.num_tokens for mine, theirs in pairs]
        count = len(differences)
        if count < 2 or not all(map(math.isfinite, differences)):
            return None
        mean = math.fsum(differences) / count
        return math.sqrt(
            math.fsum((difference - mean) ** 2 for difference in differences) / (count - 1) / count
        )


class Scorer:
    """Scores candidates, and asks the pool only for what the store does not have.

    Args:
        context: what the scores depend on, but for the token set, which is filled in here.
        on_evaluation: told of progress.
        set_keys: names of the calibration sets on the evaluators; None: their own.
    """

    def __init__(
        self,
        pool: Pool,
        store: ScoreStore,
        calibration: Calibration,
        context: Context,
        on_evaluation: OnEvaluation | None = None,
        set_keys: Mapping[SetName, str] | None = None,
    ) -> None:
        self.pool, self.store = pool, store
        self._set_keys = set_keys or {}
        self.on_evaluation = on_evaluation or _nobody
        self.num_scored = 0
        self.num_reused = 0
        self._order = context.order
        self._contexts = {
            name: replace(context, tokens=tokens.fingerprint)
            for name, tokens in calibration.sets().items()
        }
        self._num_batches = {
            name: len(tokens.batches(context.batch_size))
            for name, tokens in calibration.sets().items()
        }

    def score(
        self, set_name: SetName, base: ModelShape, candidates: Sequence[Candidate]
    ) -> dict[Candidate, ShapeScore]:
        """Scores every candidate on every batch of a set."""
        context, num_batches = self._contexts[set_name], self._num_batches[set_name]
        digests = {candidate: base.changed(candidate).digest for candidate in candidates}
        known = self.store.lookup(context, digests.values())
        missing = {
            batch: [
                candidate for candidate in candidates if (digests[candidate], batch) not in known
            ]
            for batch in range(num_batches)
        }
        num_missing = sum(map(len, missing.values()))
        self.num_reused += len(candidates) * num_batches - num_missing
        self.on_evaluation(
            (len(candidates) * num_batches - num_missing) / num_batches, scored=False
        )
        key = self._set_keys.get(set_name, set_name)
        tasks = [
            ScoreTask(key, batch, base.text, tuple(missing[batch]), self._order)
            for batch in missing
            if missing[batch]
        ]
        for answers in self.pool.run(tasks):
            scores = {
                (digests[candidate], task.batch): BatchScore(nll, result.num_tokens)
                for task, result in answers
                if isinstance(task, ScoreTask) and isinstance(result, ScoreResult)
                for candidate, nll in zip(task.candidates, result.nll, strict=True)
            }
            if scores:
                self.store.add(context, scores)  # all that came together in one transaction
            known |= scores
            self.num_scored += len(scores)
            self.on_evaluation(len(scores) / num_batches, scored=True)
        return {
            candidate: _joined(known, digests[candidate], num_batches) for candidate in candidates
        }

    @property
    def evaluations(self) -> dict[str, int]:
        """(candidate, batch) pairs that were scored by this process, and those that were in the
        store.
        """
        return {"scored": self.num_scored, "reused": self.num_reused}


def _nobody(candidates: float, *, scored: bool) -> None:
    """Nobody wants to know of progress."""


def _joined(
    known: Mapping[tuple[str, int], BatchScore], digest: str, num_batches: int
) -> ShapeScore:
    batches = [known[digest, batch] for batch in range(num_batches)]
    return ShapeScore(tuple(nll for batch in batches for nll in batch.nll), batches[0].num_tokens)
