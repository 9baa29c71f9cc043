"""What both models write after a few words, at the end of a search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import multipruner
from pipelines.cli.console import console
from pipelines.prune.samples import _is_control, _spread
from pipelines.prune.summary import result_tables
from pruning.calibration.token_sets import TokenSet
from pruning.errors import InputError
from pruning.models.checkpoint import Checkpoint
from tests.documents import save_reader
from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Search
from tests.pipelines.tracking.test_description import NOTE, page
from workers.cluster.machine import LocalMachine
from workers.evaluators import shapes as evaluator

SHORT = "samples.num_tokens=5"


@pytest.fixture
def read(search: Search, tmp_path: Path) -> Search:
    """The search of a tiny model with a tokenizer, whose every token is a letter that one sees."""
    model = save_reader(tmp_path / "reader")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps(tokenizer | {"decoder": None}))

    def run(*words: str, folder: str = "run") -> Outcome:
        outcome = search(f"model.path={model}", *words, folder=folder)
        assert outcome.status == 0, outcome.output
        return outcome

    return run


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shapes that text was generated with, once for each time."""
    found: list[str] = []
    continuations = evaluator.continuations

    def counted(dense: Any, shape: Any, prompts: Any, *, num_tokens: int) -> Any:
        found.append(shape.text)
        return continuations(dense, shape, prompts, num_tokens=num_tokens)

    monkeypatch.setattr(evaluator, "continuations", counted)
    return found


def written(model: Any, tokenizer: Any, ids: list[int], num_tokens: int) -> str:
    """By transformers' own greedy decoding."""
    whole = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0].tolist()
    before, after = tokenizer.decode(ids), tokenizer.decode(whole)
    assert after.startswith(before)
    return str(after[len(before) :])


@pytest.mark.parametrize("method", ["multipruner", "multipruner_compensated"])
def test_they_are_what_both_models_write(
    read: Search, tmp_path: Path, token_file: Path, method: str
) -> None:
    """As transformers generates with the dense checkpoint, and with the pruned model in memory."""
    outcome = read(f"search={method}", "samples.num_prompts=3", SHORT)
    samples, run = outcome.summary["samples"], multipruner.open(outcome.folder)
    assert isinstance(run, multipruner.Run)
    heldout = load_file(token_file)["input_ids"][8:12]  # behind what the stages read
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "reader", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reader")
    assert len(samples) == 3
    for sample, row in zip(samples, heldout, strict=False):
        ids = row[:8].tolist()
        assert sample == {
            "prompt": tokenizer.decode(ids),
            "dense": written(dense, tokenizer, ids, 5),
            "pruned": written(run.model, tokenizer, ids, 5),
        }
    assert any(sample["dense"] != sample["pruned"] for sample in samples)
    assert outcome.summary["num_sample_tokens"] == 5


def test_they_are_shown_at_the_end_and_on_the_page(read: Search) -> None:
    outcome = read(SHORT)
    samples = outcome.summary["samples"]
    assert len(samples) == 2
    end = outcome.output[outcome.output.index("what they write") :]
    said = " ".join(end.replace("│", " ").split())
    note = page(outcome).data.tags[NOTE]
    assert "| after | dense writes | pruned writes |" in note
    for sample in samples:
        for text in sample.values():
            [first, *_] = text.split()
            assert first in said
            assert first in note


def test_there_are_none_where_none_are_wanted(read: Search, generated: list[str]) -> None:
    outcome = read("samples.num_prompts=0")
    assert generated == []
    assert not {"samples", "num_sample_tokens"} & outcome.summary.keys()
    assert "what they write" not in outcome.output
    assert "samples:" not in outcome.output
    assert "dense writes" not in page(outcome).data.tags[NOTE]


def test_a_model_without_tokenizer_has_none(undisturbed: Outcome) -> None:
    assert "samples" not in undisturbed.summary
    assert "samples: no text is generated: model.path: " in undisturbed.output


def test_a_tokenizer_that_gives_no_text_has_none(
    read: Search, monkeypatch: pytest.MonkeyPatch, generated: list[str]
) -> None:
    class Mute:
        eos_token_id = None

        def decode(self, ids: object, **_: object) -> str:
            return " "

    monkeypatch.setattr(Checkpoint, "tokenizer", lambda self: Mute())
    outcome = read(SHORT)
    assert "samples" not in outcome.summary
    assert "the tokenizer gives no text to begin with" in outcome.output
    assert generated == []


@pytest.mark.parametrize("error", [RuntimeError("no kernel"), InputError("odd"), KeyError("x")])
def test_a_model_that_cannot_write_spoils_nothing(
    read: Search, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(evaluator, "continuations", fails)
    outcome = read(SHORT)
    assert "samples" not in outcome.summary
    assert f" generated: {error}" in outcome.output
    assert outcome.summary["status"] == "target reached"


def test_a_context_too_short_is_said(read: Search, generated: list[str]) -> None:
    outcome = read("samples.num_tokens=4000")
    assert "samples.num_tokens: 4000; this model's context of" in outcome.output
    assert generated == []
    assert "samples" not in outcome.summary


def test_a_finished_run_has_them_already(read: Search, generated: list[str]) -> None:
    """Of the same length; a damaged summary, or another length, has them written anew."""
    first = read(SHORT)
    expected = first.summary["samples"]
    assert len(generated) == len(set(generated)) == 2
    assert read(SHORT).summary["samples"] == expected
    assert len(generated) == 2
    (first.folder / "summary.json").write_text("{")
    assert read(SHORT).summary["samples"] == expected
    assert len(generated) == 4
    longer = read("samples.num_tokens=6").summary["samples"]
    assert len(generated) == 6
    assert [sample["prompt"] for sample in longer] == [sample["prompt"] for sample in expected]
    assert longer != expected


def test_another_shape_is_written_with_anew(read: Search, generated: list[str]) -> None:
    """A summary that is of an earlier point of the path, as a copy may be."""
    first = read(SHORT)
    before = first.summary["samples"]
    old = first.summary | {"shape": "other"}
    (first.folder / "summary.json").write_text(json.dumps(old))
    assert read(SHORT).summary["samples"] == before
    assert len(generated) == 4


def test_without_held_out_text_sentences_begin(read: Search) -> None:
    outcome = read("calibration.num_heldout_samples=0", SHORT)
    prompts = [sample["prompt"] for sample in outcome.summary["samples"]]
    assert prompts[0].replace(" ", "").startswith("TheĠhouseĠat"), prompts


def test_prompts_are_of_every_source_and_far_apart() -> None:
    rows = torch.arange(12)[:, None].expand(12, 4)
    mixed = TokenSet(rows, ("a", "b") * 6)
    assert _spread(mixed, 1) == [0]
    assert _spread(mixed, 2) == [0, 1]
    assert _spread(mixed, 4) == [0, 1, 6, 7]
    uneven = TokenSet(rows, ("a",) * 11 + ("b",))
    assert _spread(uneven, 4) == [0, 11, 5, 10]
    assert _spread(TokenSet(rows), 2) == [0, 6]
    assert _spread(TokenSet(rows), 15) == list(range(12))


def test_spaces_and_joiners_of_scripts_stay_and_controls_do_not() -> None:
    kept = "\u4f60\u597d\u3000\u4e16\u754c a\u00a0b \u0645\u06cc\u200c\u062e\n\t"
    assert [each for each in kept if _is_control(each)] == []
    assert all(map(_is_control, "\x1b\x07\u202e\u2066\x9b\r\ufeff"))


@pytest.mark.ray
@pytest.mark.parametrize("num_evaluators", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_evaluators_writes_the_same(
    read: Search, local_cluster: LocalMachine, num_evaluators: int
) -> None:
    alone = read(SHORT, folder="alone")
    several = read(
        SHORT, "cluster=local", f"cluster.num_evaluators={num_evaluators}", folder="several"
    )
    assert several.summary["samples"] == alone.summary["samples"]


UNTRUSTED = "\x1b[2Ja\x07 [bold]b[/] <i>|*c*\u202e\x9b1m"


def test_text_of_a_model_is_no_command_to_a_terminal(
    read: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither to a page, nor markup."""

    class Hostile:
        eos_token_id = None

        def decode(self, ids: list[int], **_: object) -> str:
            return UNTRUSTED * (2 if len(ids) > 8 else 1)

    monkeypatch.setattr(Checkpoint, "tokenizer", lambda self: Hostile())
    outcome = read(SHORT)
    for text in outcome.summary["samples"][0].values():
        assert text == "�[2Ja� [bold]b[/] <i>|*c*��1m"
    assert not set("\x1b\x07\x9b\u202e") & set(outcome.output)
    assert "[bold]b[/]" in outcome.output
    assert r"\[bold\]b\[/\] \<i\>\|\*c\*" in page(outcome).data.tags[NOTE]


def test_a_terminal_without_the_letters_shows_the_table(
    undisturbed: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = {"prompt": "Tür", "dense": "“so”\nweiter", "pruned": "…"}
    summary = undisturbed.summary | {"samples": [sample]}
    monkeypatch.setattr(type(console), "encoding", "ascii")
    with console.capture() as shown:
        console.print(result_tables(summary))
    said = shown.get().encode("ascii").decode()
    assert "T?r" in said
    assert "?so? weiter" in said
