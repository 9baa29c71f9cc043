"""What scores and answers of these tests were computed with."""

from __future__ import annotations

from pipelines.store.scores import AnswerContext, Context
from pruning.scoring.arithmetic import Arithmetic

ARITHMETIC = Arithmetic(device="cpu", num_threads=1)
CONTEXT = Context(
    model="m", tokens="t", order="o", dtype="float32", batch_size=2, arithmetic=ARITHMETIC
)
ANSWERS = AnswerContext(
    model="m",
    tokenizer="k",
    shape="s",
    order="o",
    dtype="float32",
    batch_size=4,
    arithmetic=ARITHMETIC,
    max_length=None,
    harness="0.4.13",
)
