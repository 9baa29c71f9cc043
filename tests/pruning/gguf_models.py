"""Tiny models and tokenizers that the tests of GGUF write."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from pruning.accounting import Accounting
from pruning.export.subject import Subject
from pruning.shape import ModelShape
from tests.conftest import tiny_config, tiny_model
from tests.pruning.test_families import HARD

VOCAB = 320
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {"attention_bias": False, "mlp_bias": False}),
    "llama with biases, tied": ("llama", {"tie_word_embeddings": True}),
    "llama 3 rope": ("llama", {"attention_bias": False, "rope_parameters": LLAMA3_ROPE}),
    "linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
}

NASTY = (
    "The quick brown fox's 1234567 jumps; don't DON'T!",
    "  two  spaces\n\n\nnewlines\t\ttabs \r\n end ",
    "émigré Ünïcode 漢字 かな 🙂👍🏽 12,345.67",
    "def f(x):\n    return x**2  # ok?!\n",
    "<s>special</s> and user",
)


def config_of(name: str, **changes: object) -> PretrainedConfig:
    model_type, own = MODELS[name]
    return tiny_config(model_type, vocab_size=VOCAB, **(own | changes))


def subject_of(name: str, folder: Path, shape: ModelShape = HARD, dtype: torch.dtype = torch.float32, **changes: object) -> Subject:
    config = config_of(name, **changes)
    accounting = Accounting(config)
    return Subject(tiny_model(config), accounting.family, accounting.geometry, shape, folder, dtype)


def byte_level(pre_tokenizer: pre_tokenizers.PreTokenizer, *, ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 4, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator([text + " 123 1234 the theme ''s 's\n\n" for text in NASTY] * 4, trainer)
    tokenizer.add_tokens([AddedToken("user", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template="{{ messages }}")
