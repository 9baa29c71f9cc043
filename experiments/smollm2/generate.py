"""Text of an exported folder, by stock transformers alone: `python experiments/smollm2/generate.py
FOLDER`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = (
    "What is the capital of France?",
    "Write two sentences about the sea.",
    "Why is the sky blue?",
    "Name three animals that live in Africa.",
)
BEGINNINGS = ("The history of the Roman Empire", "Once upon a time, there was a little girl who")


@torch.inference_mode()
def main(folder: str) -> None:
    """Greedy, with a penalty on repetition, which models of this size need, pruned or not."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    for text in (*QUESTIONS, *BEGINNINGS):
        if text in QUESTIONS:
            inputs = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )
        else:
            inputs = tokenizer(text, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=56, do_sample=False, repetition_penalty=1.2)
        new = ids[0, inputs["input_ids"].shape[1] :]
        print(f"> {text}\n{tokenizer.decode(new, skip_special_tokens=True).strip()}\n")


if __name__ == "__main__":
    main(sys.argv[1])
