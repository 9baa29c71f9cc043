"""The model card of an exported folder: what it is, how it was made, how to open it, and its
measured numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pruning.costs.accounting import NOT_KNOWN
from pruning.search.strategies import STRATEGIES

LOADING = {
    "transformers": """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{folder}", trust_remote_code=True)
```

`trust_remote_code=True` runs `modeling_pruned.py` of this folder, about a hundred lines: stock
classes assume that all layers are alike. The tokenizer has no code, but it asks for the model's
configuration first. Where the Python package `multipruner` is installed, call
`pruning.export.transformers.register()` instead, and no code of the folder is run.

- lm-eval: `lm_eval --model hf --model_args pretrained={folder},trust_remote_code=True --tasks piqa`
- vLLM, llama.cpp: export the same run with `format=decilm` or `format=gguf`.""",
    "plain": """\
All layers are alike, so this is a plain checkpoint of the family: whatever opens the dense model
opens it, and no code goes with it.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```

- lm-eval: `lm_eval --model hf --model_args pretrained={folder} --tasks piqa`
- vLLM: `vllm serve {folder}`
- llama.cpp: its `convert_hf_to_gguf.py`, or export the same run with `format=gguf`.""",
    "decilm": """\
- vLLM (its own implementation of DeciLM): `vllm serve {folder} --trust-remote-code`
- transformers: `AutoModelForCausalLM.from_pretrained("{folder}", trust_remote_code=True)`, which
  runs the files of code in this folder, and the same for `AutoTokenizer`.""",
    "gguf": """\
- llama.cpp: `llama-cli --model {folder}/{gguf} --prompt "Once upon a time"`
- smaller: `llama-quantize {folder}/{gguf} model-Q4_K_M.gguf Q4_K_M`""",
}

OPENED = {
    "transformers": "opened by transformers in a fresh process",
    "llama.cpp": "opened by llama.cpp in a fresh process",
    "gguf": "read back with the gguf package and computed, since llama.cpp was not installed",
}
"""How an export was checked, by the `program` that its verification names."""


def model_card(description: Mapping[str, Any]) -> str:
    """README.md of the folder.

    Args:
        description: what the manifest says, see `pruning.export.folder`.
    """
    model, parameters = description["model"], description["num_parameters"]
    recovery = description.get("recovery")
    parts = [
        _front_matter(description),
        f"# {model['name']}, {description['ratio']:.1%} of its parameters removed",
        f"This is {_name(model)} with whole attention and MLP blocks, MLP channels and attention "
        f"heads taken out{_before_training(recovery)}: "
        f"{parameters['pruned']:,} of {parameters['dense']:,} parameters remain. "
        + _choice(description.get("settings") or {}),
        f"## Open it\n\n{_loading(description)}\n\nFOLDER is the folder that this file is in.",
        "## Measured\n\n" + _numbers(description),
        "## How it was made\n\n" + _making(description),
        f"## Limits\n\n{_training(recovery)} Knowledge and languages that the "
        "calibration text does not touch may have gone first; "
        "judge the model on the task that it is for. The licence is that of the model it was "
        "made from.",
    ]
    return "\n\n".join(parts) + "\n"


def _choice(settings: Mapping[str, Any]) -> str:
    """How it was found what goes, and what was done to the rest."""
    strategy = STRATEGIES.get(settings.get("search.strategy", ""))
    if strategy is None:
        return "The shape was given, not searched."
    refitted = (
        " The weights that remain of a narrowed block are refitted, in closed form, to what the "
        "whole block returned."
        if settings.get("search.compensation", "none") != "none"
        else ""
    )
    partly = (
        " Its steps may have scored only those candidates that the steps before made likely."
        if settings.get("search.selection", "exhaustive") != "exhaustive"
        else ""
    )
    by_cost = (
        " What it raises it by was set against what it saves of the cost that was to go."
        if settings.get("search.judged_by", "score") != "score"
        else ""
    )
    return f"What went was chosen by {strategy.method}.{by_cost}{partly}{refitted}"


def _before_training(recovery: Mapping[str, Any] | None) -> str:
    return ", without any training" if recovery is None else ", and trained for a short time then"


def _training(recovery: Mapping[str, Any] | None) -> str:
    """What was trained after the removal."""
    if recovery is None:
        return "Nothing was trained after the removal."
    settings, text = recovery["settings"], recovery["text"]
    goal = {
        "kl": "to predict the distributions of the dense model",
        "nll": "to predict the next token",
    }[settings["loss"]]
    rank = settings["rank"]
    trained = f"adapters of rank {rank} were trained" if rank else "its blocks were trained"
    merged = ", and added to the weights" if rank else ""
    return (
        f"After the removal, {trained} for "
        f"{recovery['best_step']} updates of {settings['batch_size']} x "
        f"{text['sequence_length']} tokens of {text['sources'] or text['source']}, {goal}{merged}."
    )


def _loading(description: Mapping[str, Any]) -> str:
    gguf = next((name for name in description["weight_files"] if name.endswith(".gguf")), "")
    form = description["format"]
    if form == "transformers" and not description["needs_code"]:
        form = "plain"
    return LOADING[form].replace("{folder}", "FOLDER").replace("{gguf}", gguf)


def _front_matter(description: Mapping[str, Any]) -> str:
    lines = [
        "---",
        "library_name: " + {"gguf": "gguf"}.get(description["format"], "transformers"),
        "pipeline_tag: text-generation",
        "tags: [multipruner, pruned]",
    ]
    if description["model"]["hub_id"]:
        lines.append(f"base_model: {description['model']['hub_id']}")
    return "\n".join([*lines, "---"])


def _name(model: Mapping[str, Any]) -> str:
    return (
        f"[{model['name']}](https://huggingface.co/{model['hub_id']})"
        if model["hub_id"]
        else str(model["name"])
    )


def _perplexities(description: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of texts: those of the search or of the training, then those of an evaluation."""
    rows: list[tuple[str, str, str]] = []
    for name, pair in (description.get("perplexity") or {}).items():
        if pair["dense"] and pair["pruned"]:
            before, after = f"{pair['dense']:.2f}", f"{pair['pruned']:.2f}"
            rows.append((f"token perplexity, {name} text of the search", before, after))
    if description.get("recovery"):
        pair = description["recovery"]["heldout_perplexity"]
        before, after = (_shown(pair[name], "{:.2f}") for name in ("dense", "recovered"))
        rows.append(("token perplexity, held-out text of the training", before, after))
    evaluation = description.get("evaluation") or {}
    dense = (evaluation.get("dense") or {}).get("perplexity") or {}
    for name, value in (evaluation.get("perplexity") or {}).items():
        before, after = _shown(dense.get(name), "{:.2f}"), _shown(value, "{:.2f}")
        rows.append((f"token perplexity, {name}", before, after))
    return rows


def _numbers(description: Mapping[str, Any]) -> str:
    """One table, dense against pruned. What was not measured is not in it."""
    rows = _perplexities(description)
    evaluation = description.get("evaluation") or {}
    dense = evaluation.get("dense") or {}
    for name, scores in (evaluation.get("tasks") or {}).items():
        before = (dense.get("tasks") or {}).get(name) or {}
        for metric in ("acc", "acc_norm"):
            if metric in scores:
                error = scores.get(f"{metric}_stderr")
                shown = f"{scores[metric]:.4f}" + (
                    f" ± {error:.4f}" if isinstance(error, float) else ""
                )
                rows.append(
                    (
                        f"{name}, {metric} ({scores['num_documents']} documents)",
                        _shown(before.get(metric), "{:.4f}"),
                        shown,
                    )
                )
    for name, label in (
        ("num_parameters", "parameters"),
        ("flops_per_token", "FLOPs per token"),
        ("kv_cache_bytes_per_token", "KV-cache bytes per token"),
    ):
        pair = description.get(name)
        if pair:
            rows.append((label, _count(pair["dense"]), _count(pair["pruned"])))
    table = "\n".join(
        [
            "| | dense | pruned |",
            "|---|---|---|",
            *(f"| {name} | {before} | {after} |" for name, before, after in rows),
        ]
    )
    stored = description["num_stored_parameters"]
    return (
        f"{table}\n\nThe weights hold {stored:,} values: norms of blocks that are gone count "
        "as parameters, as in the paper, but are not written."
    )


def _making(description: Mapping[str, Any]) -> str:
    settings, verification = description.get("settings") or {}, description["verification"]
    lines = [f"- {name}: `{value}`" for name, value in settings.items() if value is not None]
    steps = description.get("trajectory") or []
    if steps:
        lines.append(f"- {len(steps)} steps; each with its perplexity is in `multipruner.json`")
    lines.append(
        "- shape, as KV heads x MLP channels of each layer, 0 for a block that is gone: "
        f"`{description['shape']}`"
    )
    if isinstance(verification, Mapping):
        lines.append(
            f"- {OPENED[verification['program']]}, the largest difference of its logits from the "
            f"search's masked model was {verification['difference']:.1e} of "
            f"the largest logit ({verification['tolerance']:.0e} allowed)"
        )
    versions = ", ".join(
        f"{name} {version}" for name, version in (description.get("versions") or {}).items()
    )
    lines.append(f"- versions: {versions}" if versions else "")
    return (
        "\n".join(line for line in lines if line)
        + "\n\n`multipruner.json` has all of it for programs, and the SHA-256 of every file."
    )


def _count(value: int | None) -> str:
    return NOT_KNOWN if value is None else f"{value:,}"


def _shown(value: float | None, form: str) -> str:
    return form.format(value) if isinstance(value, (int, float)) else ""
