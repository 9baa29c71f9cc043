"""A few lines of text by the dense and the pruned model, to be read side by side: an impression,
not a measurement.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from itertools import zip_longest
from typing import Any

from transformers import PreTrainedTokenizerBase

from pipelines.prune.job import PruneJob
from pipelines.runs.files import SUMMARY, read_json_if_there
from pipelines.runs.folder import RunFolder
from pruning.calibration.token_sets import TokenSet
from pruning.errors import InputError, first_line
from pruning.importance.channel_order import ChannelOrder
from pruning.shape import ModelShape
from workers.pool.protocol import Pool
from workers.tasks import Continuations, GenerationTask

log = logging.getLogger(__name__)

SAMPLE_FIELDS = ("prompt", "dense", "pruned")

_PROMPT_TOKENS = 8
_SENTENCES = (
    "The house at the end of the street was",
    "The most important thing about water is that",
    "On the first day of the week, the children",
    "A good way to learn how a machine works is",
)
"""Where no text was held out."""


def samples(
    job: PruneJob,
    pool: Pool,
    order: ChannelOrder,
    shape: ModelShape,
    folder: RunFolder,
    on_wait: Callable[[], None],
) -> dict[str, Any]:
    """For summary.json: `samples`, what both models write after each prompt, and
    `num_sample_tokens`. What the folder's summary has of the same is taken from there.

    Empty if there is no such text: a search that is done is not spoilt by that.

    Args:
        on_wait: called about every second.
    """
    num_tokens = job.config.samples.num_tokens
    if not job.config.samples.num_prompts:
        return {}
    try:
        tokenizer = job.checkpoint.tokenizer()
        prompts = _prompts(job, tokenizer)
        found = _known(folder, shape, [text for text, _ in prompts], num_tokens)
        if found is None:
            tasks = {
                role: GenerationTask(
                    each.text, order.fingerprint, tuple(ids for _, ids in prompts), num_tokens
                )
                for role, each in (("dense", job.accounting.dense), ("pruned", shape))
            }
            added = _continued(pool, list(dict.fromkeys(tasks.values())), on_wait)
            found = [
                {"prompt": prompt}
                | {
                    role: _added(tokenizer, ids, added[task.shape][number])
                    for role, task in tasks.items()
                }
                for number, (prompt, ids) in enumerate(prompts)
            ]
    except InputError as error:
        log.info("samples: no text is generated: %s", first_line(error))
        return {}
    except Exception as error:  # noqa: BLE001 - hours of search are behind it
        log.warning("samples: no text was generated: %s", first_line(error))
        return {}
    return {"samples": found, "num_sample_tokens": num_tokens}


def _prompts(
    job: PruneJob, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[str, tuple[int, ...]]]:
    """Text and tokens of each: the first words of held-out sequences, of every source of a mixture
    if there are as many; else fixed sentences.
    """
    config, heldout = job.config.samples, job.calibration.heldout
    context = getattr(job.checkpoint.config(), "max_position_embeddings", None) or 2**20
    room = context - config.num_tokens
    if room < 1:
        raise InputError(
            f"samples.num_tokens: {config.num_tokens}; this model's context of {context} tokens "
            "has no room for so many"
        )
    if heldout is not None:
        rows = heldout.input_ids[_spread(heldout, config.num_prompts), :_PROMPT_TOKENS].tolist()
    else:
        rows = [tokenizer(sentence)["input_ids"] for sentence in _SENTENCES]
    ids = [tuple(row[:room]) for row in rows[: config.num_prompts]]
    found = [(text, row) for row in ids if (text := _text(tokenizer, row)).strip()]
    if not found:
        raise InputError("the tokenizer gives no text to begin with")
    return found


def _spread(heldout: TokenSet, count: int) -> list[int]:
    """Numbers of so many sequences: of each source in turns, far apart."""
    sources = [list(each) for each in heldout.positions().values()] or [
        list(range(heldout.num_sequences))
    ]
    per_source = -(-count // len(sources))
    turns = [each[:: max(1, len(each) // per_source)] for each in sources]
    found = [each for turn in zip_longest(*turns) for each in turn if each is not None]
    return found[:count]


def _known(
    folder: RunFolder, shape: ModelShape, prompts: list[str], num_tokens: int
) -> list[dict[str, str]] | None:
    """What an earlier process wrote of the same."""
    with suppress(InputError):  # damaged, and soon written anew
        summary = read_json_if_there(folder.path / SUMMARY, option="output_dir") or {}
        found = summary.get("samples")
        same = summary.get("num_sample_tokens") == num_tokens and summary["shape"] == shape.text
        if found and same and [sample["prompt"] for sample in found] == prompts:
            return [{name: str(sample[name]) for name in SAMPLE_FIELDS} for sample in found]
    return None


def _continued(
    pool: Pool, tasks: list[GenerationTask], on_wait: Callable[[], None]
) -> dict[str, Continuations]:
    """By shape."""
    log.info("samples: both models go on with %d texts", len(tasks[0].prompts))
    found: dict[str, Continuations] = {}
    for answers in pool.run(tasks):
        on_wait()
        for task, result in answers:
            assert isinstance(task, GenerationTask)
            assert isinstance(result, tuple)
            found[task.shape] = result
    return found


def _added(
    tokenizer: PreTrainedTokenizerBase, prompt: tuple[int, ...], added: tuple[int, ...]
) -> str:
    """The text of added tokens, up to the end of the text if they say so: of all together less the
    prompt's, since some tokenizers drop the space before a first word.
    """
    end = tokenizer.eos_token_id
    kept = added[: added.index(end)] if end in added else added
    before, whole = _text(tokenizer, prompt), _text(tokenizer, (*prompt, *kept))
    return whole.removeprefix(before) if whole.startswith(before) else _text(tokenizer, kept)


def _text(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...] | list[int]) -> str:
    """Without control characters, which a terminal or a page would obey."""
    text = str(tokenizer.decode(list(ids), skip_special_tokens=True))
    return "".join("\ufffd" if _is_control(each) else each for each in text.replace("\r\n", "\n"))


def _is_control(character: str) -> bool:
    """Not so are the spaces of many scripts, and what joins letters or keeps them apart."""
    return not (
        character.isprintable()
        or character in "\n\t\u200c\u200d"
        or unicodedata.category(character) == "Zs"
    )
