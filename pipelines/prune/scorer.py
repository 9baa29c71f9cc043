"""Scores of candidates: from the store, else from the evaluators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from pipelines.store.scores import Context, ScoreStore
from pruning.calibration.token_sets import Calibration, SetName
from pruning.scoring.score import BatchScore, ShapeScore
from pruning.shape import ModelShape
from workers.pool.protocol import Pool
from workers.tasks import Candidate, ScoreResult, ScoreTask


class OnEvaluation(Protocol):
    """Told how many candidates got done, in fractions where a candidate has several batches, and
    whether they were scored or in the store.

    Called about every second, with 0 candidates if none got done.
    """

    def __call__(self, candidates: float, *, scored: bool) -> None: ...


_Candidate = TypeVar("_Candidate", bound=Candidate)


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

    def num_batches(self, set_name: SetName) -> int:
        """Batches of a calibration set."""
        return self._num_batches[set_name]

    def score(
        self, set_name: SetName, base: ModelShape, asks: Sequence[tuple[_Candidate, int]]
    ) -> dict[tuple[_Candidate, int], BatchScore]:
        """Scores candidates on batches of a set.

        Args:
            base: the shape that the candidates differ from.
            asks: pairs of candidate and batch, no pair twice.
        """
        context, num_batches = self._contexts[set_name], self._num_batches[set_name]
        digests: dict[Candidate, str] = {
            candidate: base.changed(candidate).digest for candidate, _ in asks
        }
        known = self.store.lookup(context, digests.values())
        missing: dict[int, list[_Candidate]] = {}
        for candidate, batch in asks:
            if (digests[candidate], batch) not in known:
                missing.setdefault(batch, []).append(candidate)
        num_known = len(asks) - sum(map(len, missing.values()))
        self.num_reused += num_known
        self.on_evaluation(num_known / num_batches, scored=False)
        key = self._set_keys.get(set_name, set_name)
        tasks = [
            ScoreTask(key, batch, base.text, tuple(candidates), self._order)
            for batch, candidates in missing.items()
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
        return {(candidate, batch): known[digests[candidate], batch] for candidate, batch in asks}

    def score_shape(self, set_name: SetName, shape: ModelShape) -> ShapeScore:
        """Scores a shape on a whole set."""
        scores = self.score(
            set_name, shape, [(None, batch) for batch in range(self._num_batches[set_name])]
        )
        return ShapeScore.of(scores.values())

    @property
    def evaluations(self) -> dict[str, int]:
        """(candidate, batch) pairs that were scored by this process, and those that were in the
        store.
        """
        return {"scored": self.num_scored, "reused": self.num_reused}


def _nobody(candidates: float, *, scored: bool) -> None:
    """Nobody wants to know of progress."""
