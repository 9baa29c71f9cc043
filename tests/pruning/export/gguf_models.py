"""Tiny models and tokenizers that the tests of GGUF write."""

from __future__ import annotations

from pathlib import Path

import gguf
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from pruning.export.source import ExportSource
from pruning.models.loaded_model import LoadedModel
from pruning.shape import ModelShape
from tests.conftest import tiny_config, tiny_model
from tests.pruning.models.test_families import HARD

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
    "linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
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


def source_of(
    name: str,
    folder: Path,
    shape: ModelShape = HARD,
    dtype: torch.dtype = torch.float32,
    **changes: object,
) -> ExportSource:
    dense = LoadedModel.of(tiny_model(config_of(name, **changes)))
    return ExportSource(dense, shape, folder, dtype)


def byte_level(
    pre_tokenizer: pre_tokenizers.PreTokenizer, *, ignore_merges: bool = False, merges: bool = True
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 4 if merges else 0,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [text + " 123 1234 the theme ''s 's\n\n" for text in NASTY] * 4, trainer
    )
    tokenizer.add_tokens([AddedToken("user", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{{ messages }}",
    )


def gemma3_words() -> list[str]:
    """320 pieces as Gemma has them: what controls, bytes to fall back on, characters, and words
    that they merge into.
    """
    words = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "\n",
        *"abcdefghijklmnopqrstuvwxyz",
        "th",
        "the",
        "▁the",
        "▁▁",
    ]
    return words + [f"<unused{number}>" for number in range(VOCAB - len(words))]


def add_sizes(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    """What every family's GGUF says of its layers."""
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def write_gemma3(path: Path, model: PreTrainedModel, *, rope_scaling: float | None = None) -> None:
    """A Gemma 3 as llama.cpp's converter writes it: weights of norms one larger, no head, neither
    the pattern of its windows nor its second rotary base.
    """
    config, words = model.config, gemma3_words()
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_context_length(config.max_position_embeddings)
    add_sizes(writer, config)
    writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
    if rope_scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope_scaling)
    writer.add_sliding_window(config.sliding_window)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_scores(
        [-1000.0 if index < 260 else float(-index) for index in range(len(words))]
    )
    kinds = {
        range(3): gguf.TokenType.CONTROL,
        range(3, 4): gguf.TokenType.UNKNOWN,
        range(4, 260): gguf.TokenType.BYTE,
    }
    writer.add_token_types(
        [
            next(
                (kind for numbers, kind in kinds.items() if index in numbers), gguf.TokenType.NORMAL
            )
            for index in range(len(words))
        ]
    )
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    for name, tensor in model.model.state_dict(prefix="model.").items():
        writer.add_tensor(
            names.get_name(name, try_suffixes=(".weight",)),
            (tensor + 1 if name.endswith("norm.weight") else tensor).numpy(),
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
