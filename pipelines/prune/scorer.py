"""Scores of candidates: from the store, else from the evaluators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar, cast

from pipelines.runs.journal import DEVIATIONS, Deviation
from pipelines.store.scores import Context, ScoreStore
from pruning.calibration.token_sets import Calibration, SetName
from pruning.scoring.score import BatchScore, ShapeScore
from pruning.shape import UNITS, ModelShape, Resize
from workers.pool.protocol import Pool
from workers.tasks import Candidate, ScoreKind, ScoreResult, ScoreTask, Task


class OnEvaluation(Protocol):
    """Told how many candidates got done, in fractions where a candidate has several batches, and
    whether they were scored or in the store.

    Called about every second, with 0 candidates if none got done.
    """

    def __call__(self, candidates: float, *, scored: bool) -> None: ...


_Candidate = TypeVar("_Candidate", bound=Candidate)

_Key = tuple[str, int]
"""Digest of a shape, and batch."""


class Scorer:
    """Scores candidates, and asks the pool only for what the store does not have.

    Args:
        context: what the scores depend on, but for the token set, which is filled in here. Scores
            of halved batches, and those of evaluators with another arithmetic, have keys of their
            own; they are used, and counted in `deviating`.
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
        self._ahead: dict[Context, set[_Key]] = {}
        self.deviating: Counter[Deviation] = Counter()
        self._arithmetics = [context.arithmetic]
        self.order = context.order
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
        found = self._scores(set_name, [(base, *ask) for ask in asks], "nll", counts_base=False)
        return {ask: found[base, *ask] for ask in asks}

    def score_ahead(self, set_name: SetName, shapes: Sequence[ModelShape]) -> None:
        """Puts scores of shapes into the store that steps to come will ask for, all together, so
        that evaluators need not wait for one step after another.
        """
        batches = range(self._num_batches[set_name])
        self._scores(
            set_name, [(shape, None, batch) for shape in shapes for batch in batches], ahead=True
        )

    def score_shape(self, set_name: SetName, shape: ModelShape) -> ShapeScore:
        """Scores a shape on a whole set."""
        return self.score_near(set_name, shape, [shape], "nll")[shape]

    def score_near(
        self, set_name: SetName, base: ModelShape, shapes: Sequence[ModelShape], kind: ScoreKind
    ) -> dict[ModelShape, ShapeScore]:
        """Scores shapes on a whole set, all together.

        Args:
            base: that most of them differ from in one block; they share what lies before it.
        """
        batches = range(self._num_batches[set_name])
        starts = {shape: _as_change(base, shape) for shape in shapes}
        asks = [(*starts[shape], batch) for shape in shapes for batch in batches]
        found = self._scores(set_name, asks, kind)
        return {
            shape: ShapeScore.of(found[(*starts[shape], batch)] for batch in batches)
            for shape in shapes
        }

    def _scores(
        self,
        set_name: SetName,
        asks: Sequence[tuple[ModelShape, _Candidate, int]],
        kind: ScoreKind = "nll",
        *,
        ahead: bool = False,
        counts_base: bool = True,
    ) -> dict[tuple[ModelShape, _Candidate, int], BatchScore]:
        """Of triples of base, candidate and batch.

        Args:
            ahead: the step that they belong to will ask again, and counts them then.
            counts_base: whether a base counts as reused; that of a step is the removal before it.
        """
        context = replace(self._contexts[set_name], kind=kind)
        digests: dict[tuple[ModelShape, Candidate], str] = {
            (base, candidate): base.changed(candidate).digest
            for base, candidate in dict.fromkeys(ask[:2] for ask in asks)
        }
        keys = {ask: (digests[ask[:2]], ask[2]) for ask in asks}
        known = self._stored(context, set(keys.values()), ahead=ahead)
        missing = [ask for ask, key in keys.items() if key not in known]
        if not ahead:
            before = self._ahead.get(context, set())
            counted = before & known.keys()  # when they were scored
            before -= counted
            bases = [ask for ask in asks if ask[1] is None and keys[ask] in known]
            num_known = len(asks) - len(missing) - len(counted)
            num_known -= 0 if counts_base else len(bases)
            self.num_reused += num_known
            self.on_evaluation(num_known / self._num_batches[set_name], scored=False)
        for new in self._computed(set_name, context, missing, digests, ahead=ahead):
            known |= new
            if ahead:
                self._ahead.setdefault(context, set()).update(new)
            self.num_scored += len(new)
            self.on_evaluation(len(new) / self._num_batches[set_name], scored=True)
        return {ask: known[key] for ask, key in keys.items()}

    def _stored(
        self, context: Context, keys: Collection[_Key], *, ahead: bool
    ) -> dict[_Key, BatchScore]:
        """What the store has of some shapes on some batches."""
        known = {}
        digests = dict.fromkeys(digest for digest, _ in keys)
        for key, (score, origin) in self.store.lookup_first(
            self._contexts_of(context), digests
        ).items():
            if key in keys:
                known[key] = score
                self._note(context, origin, 0 if ahead else 1)
        return known

    def _computed(
        self,
        set_name: SetName,
        context: Context,
        asks: Sequence[tuple[ModelShape, Candidate, int]],
        digests: dict[tuple[ModelShape, Candidate], str],
        *,
        ahead: bool,
    ) -> Iterator[dict[_Key, BatchScore]]:
        """Scores from evaluators, as they come; they are in the store by then."""
        wanted: dict[tuple[ModelShape, int], list[Candidate]] = {}
        for base, candidate, batch in asks:
            wanted.setdefault((base, batch), []).append(candidate)
        name, tasks = self._set_keys.get(set_name, set_name), dict[Task, ModelShape]()
        for (base, batch), candidates in wanted.items():
            if len(candidates) == 1:  # it shares a prefix with nobody
                digest = digests[base, candidates[0]]
                base, candidates = base.changed(candidates[0]), [None]
                digests[base, None] = digest
            kind = cast(ScoreKind, context.kind)
            asked = ScoreTask(name, batch, base.text, tuple(candidates), self.order, kind)
            tasks[asked] = base
        bases = {base.text: base for base in tasks.values()}
        for answers in self.pool.run(list(tasks)):
            scores: dict[Context, dict[_Key, BatchScore]] = {}
            for task, result in answers:
                assert isinstance(task, ScoreTask)
                assert isinstance(result, ScoreResult)
                scores.setdefault(_context_of(context, result), {}).update(
                    (
                        (digests[bases[task.base], each], task.batch),
                        BatchScore(nll, result.num_tokens),
                    )
                    for each, nll in zip(task.candidates, result.nll, strict=True)
                )
            for origin, new in scores.items():
                self.store.add(origin, new)  # all that came together in one transaction
                self._note(context, origin, 0 if ahead else len(new))
            yield {key: score for new in scores.values() for key, score in new.items()}

    def _contexts_of(self, context: Context) -> list[Context]:
        """Where scores of this search may be: whole batches of its own arithmetic first."""
        return [
            replace(context, arithmetic=arithmetic, halved=halved)
            for arithmetic in self._arithmetics
            for halved in (False, True)
        ]

    def _note(self, context: Context, origin: Context, count: int) -> None:
        """Counts scores that came about otherwise than the others, and remembers where they are."""
        if origin.halved:
            self.deviating["halved"] += count
        if origin.arithmetic != context.arithmetic:
            self.deviating["other_arithmetic"] += count
            if origin.arithmetic not in self._arithmetics:
                self._arithmetics.append(origin.arithmetic)

    @property
    def evaluations(self) -> dict[str, int]:
        """(candidate, batch) pairs that were scored by this process, and those that were in the
        store; of both, and of earlier processes of the search, those that deviate.
        """
        deviating = {kind: self.deviating[kind] for kind in DEVIATIONS}
        return {"scored": self.num_scored, "reused": self.num_reused} | deviating


def _context_of(context: Context, result: ScoreResult) -> Context:
    """The key of what came, by who computed it and how."""
    return replace(
        context,
        arithmetic=result.arithmetic or context.arithmetic,
        halved=result.oom_split,
    )


def _as_change(base: ModelShape, shape: ModelShape) -> tuple[ModelShape, Resize | None]:
    """A shape as a base and what it changes of that: of `base` if it is one block, else of
    itself.
    """
    changes = [
        Resize(layer, unit, getattr(after, unit))
        for layer, (before, after) in enumerate(zip(base.layers, shape.layers, strict=True))
        for unit in UNITS
        if getattr(before, unit) != getattr(after, unit)
    ]
    return (base, changes[0]) if len(changes) == 1 else (shape, None)


def _nobody(candidates: float, *, scored: bool) -> None:
    """Nobody wants to know of progress."""
