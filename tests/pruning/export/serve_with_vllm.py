"""A user who has vLLM and nothing of ours.

Run by vLLM's own Python; answers {folder, prompt, num_tokens} on standard input with a file of the
greedy tokens, and the log-probabilities of the prompt's tokens and of those.
"""

import json
import sys
from pathlib import Path


def serve(folder, prompt, num_tokens):
    from vllm import LLM, SamplingParams

    model = LLM(
        model=folder,
        trust_remote_code=True,  # of the configuration: the implementation is vLLM's
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
    )
    sampling = SamplingParams(
        temperature=0,
        max_tokens=num_tokens,
        ignore_eos=True,
        logprobs=1,
        prompt_logprobs=1,
        detokenize=False,
    )
    (answer,) = model.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
    tokens = list(answer.outputs[0].token_ids)
    rows = [*answer.prompt_logprobs[1:], *answer.outputs[0].logprobs]
    return {
        "tokens": tokens,
        "logprobs": [
            row[token].logprob for row, token in zip(rows, [*prompt[1:], *tokens], strict=True)
        ],
    }


if __name__ == "__main__":
    question = json.loads(sys.stdin.read())
    answer = serve(**question)
    Path(sys.argv[1]).write_text(json.dumps(answer))  # vLLM itself talks on standard output
