"""A user who has transformers and nothing of ours: opens each folder, generates with it in every
way, saves it and opens it again.

Run as a program on folders that hold `probe.safetensors` (input_ids, logits); prints one JSON
object, results by folder name.
"""

import json
import sys
import tempfile
from pathlib import Path

for package in ("pruning", "workers", "pipelines", "tests"):
    sys.modules[package] = None  # importing it fails from here on

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, StaticCache  # noqa: E402

NEW = 12


def load(folder):
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    assert not any(
        report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
    ), report
    model.generation_config.eos_token_id = None
    return model.eval()


def generate(model, ids, **options):
    """Tokens, and the logits that chose them."""
    done = model.generate(
        ids,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return done.sequences[:, ids.shape[1] :], torch.stack(done.logits)


def compare(one, other):
    """Largest difference of the logits; infinite where the tokens differ."""
    return (
        float("inf")
        if one[0].tolist() != other[0].tolist()
        else (one[1] - other[1]).abs().max().item()
    )


def uncached(model, ids, mask):
    """Greedy, the whole sequence again for each token."""
    chosen, logits = [], []
    for _ in range(NEW):
        last = model(
            ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
        ).logits[:, -1]
        chosen.append(last.argmax(-1, keepdim=True))
        logits.append(last)
        ids, mask = (
            torch.cat([ids, chosen[-1]], 1),
            torch.cat([mask, torch.ones_like(chosen[-1])], 1),
        )
    return torch.cat(chosen, 1), torch.stack(logits)


@torch.inference_mode()
def check(folder):
    probe = load_file(folder / "probe.safetensors")
    ids, wanted = probe["input_ids"], probe["logits"]
    model = load(folder)
    found = {
        "class": type(model).__name__,
        "module": type(model).__module__,
        "num_layers": len(model.base_model.layers),
    }
    found["logits"] = (model(ids).logits - wanted).abs().max().item()
    model.set_attn_implementation("eager")
    found["eager"] = (model(ids).logits - wanted).abs().max().item()
    model.set_attn_implementation("sdpa")

    prompt = ids[:1, :9]
    ones = torch.ones_like(prompt)
    alone = generate(model, prompt)
    found["greedy"] = compare(alone, uncached(model, prompt, ones))
    padded = torch.cat(
        [torch.cat([torch.zeros(1, 4, dtype=torch.int64), prompt[:, :5]], 1), ids[1:2, :9]]
    )
    mask = torch.ones_like(padded)
    mask[0, :4] = 0
    batch = generate(model, padded, attention_mask=mask)
    found["left_padded"] = compare(batch, uncached(model, padded, mask))
    single = generate(model, prompt[:, :5])
    found["left_padded_row"] = compare((batch[0][:1], batch[1][:, :1]), single)
    beams = [
        model.generate(
            prompt,
            max_new_tokens=NEW,
            num_beams=3,
            do_sample=False,
            pad_token_id=0,
            use_cache=cache,
        ).tolist()
        for cache in (True, False)
    ]
    found["beam"] = 0.0 if beams[0] == beams[1] else float("inf")
    static = generate(
        model, prompt, past_key_values=StaticCache(config=model.config, max_cache_len=64)
    )
    found["static_cache"] = compare(static, alone)

    with tempfile.TemporaryDirectory() as again:
        model.save_pretrained(again)
        second = load(again)
        found["saved_again"] = (second(ids).logits - wanted).abs().max().item()
        found["files"] = sorted(path.name for path in Path(again).iterdir())
    base = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    found["base_model"] = (
        (base(ids).last_hidden_state - model.base_model(ids).last_hidden_state).abs().max().item()
    )
    found["config"] = type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__name__
    try:
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
        found["without_trust"] = "opened"
    except ValueError as error:
        found["without_trust"] = str(error)
    return found


sys.stdout.write(json.dumps({folder: check(Path(folder)) for folder in sys.argv[1:]}) + "\n")
