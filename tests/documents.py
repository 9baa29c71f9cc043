"""A tiny model that reads text, and small tasks of lm-eval in its columns, all made in code."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.conftest import tiny_config, tiny_model

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "house",
    "runs",
    "sees",
    "old",
    "red",
    "bird",
    "to",
    "with",
    "under",
    "tree",
    "small",
    "big",
    "water",
    "fish",
    "sings",
]
TASKS = ("piqa", "arc_easy", "lambada_openai", "wikitext", "cycle_letters")
"""Multiple choice, a last word with its perplexity, whole documents, and generated text."""
NUM_REQUESTS = 12 * 2 + 12 * 4 + 12 + 4 + 2


def save_reader(folder: Path, model_type: str = "llama", **sizes: Any) -> Path:
    """A tiny model with a tokenizer of bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(
            vocab={"<s>": 0} | {letter: number for number, letter in enumerate(letters, start=1)},
            merges=[],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sizes = {
        "vocab_size": len(letters) + 1,
        "max_position_embeddings": 320,
        "bos_token_id": 0,
        "eos_token_id": 0,
    } | sizes
    config = tiny_config(
        model_type,
        **({"attention_bias": False, "mlp_bias": False} if model_type == "llama" else {}),
        **sizes,
    )
    tiny_model(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>"
    ).save_pretrained(folder)
    return folder


def sentence(generator: random.Random, num_words: int) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(num_words))


def with_merges(folder: Path) -> Path:
    """The reader in a folder, now with a tokenizer that can be told to llama.cpp: it merges two
    letters in the place of a byte that no text has.
    """
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["th"] = vocab.pop(list(vocab)[-1])
    tokenizer["model"]["merges"] = [["t", "h"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def save_tasks(folder: Path, num_documents: int = 12) -> Path:
    """One file for each of `TASKS`."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(1)

    def words(low: int, high: int) -> str:
        return sentence(generator, generator.randint(low, high))

    rows: dict[str, list[dict[str, Any]]] = {
        "piqa": [],
        "arc_easy": [],
        "lambada_openai": [],
        "wikitext": [],
        "cycle_letters": [],
    }
    for number in range(num_documents):
        rows["piqa"].append(
            {"goal": words(3, 8), "sol1": words(2, 6), "sol2": words(2, 6), "label": number % 2}
        )
        choices = {"text": [words(1, 4) for _ in range(4)], "label": ["A", "B", "C", "D"]}
        rows["arc_easy"].append(
            {
                "id": str(number),
                "question": words(4, 9),
                "choices": choices,
                "answerKey": "ABCD"[number % 4],
            }
        )
        rows["lambada_openai"].append({"text": words(5, 12)})
    rows["wikitext"] = [{"page": words(40, 90)} for _ in range(4)]
    rows["cycle_letters"] = [{"context": words(2, 5), "completion": words(1, 1)} for _ in range(2)]
    files = {
        "piqa": "piqa_validation",
        "arc_easy": "arc_easy_test",
        "lambada_openai": "lambada_openai",
        "wikitext": "wikitext_test",
    }
    for name, documents in rows.items():
        lines = [json.dumps(document) for document in documents]
        (folder / f"{files.get(name, name)}.jsonl").write_text("\n".join(lines) + "\n")
    return folder
