"""Search, look, measure and write from Python: python from_python.py MODEL TEXT.

In a notebook, the lines of `main` are cells. Little text is used, for trying out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import multipruner

CALIBRATION = {
    "num_block_samples": 6,
    "num_width_samples": 4,
    "num_heldout_samples": 0,
    "sequence_length": 128,
    "batch_size": 2,
}


def main() -> None:
    """Prints the way, the shape half way and at the end, the perplexity, and the folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="a folder, a .gguf file, or a hub id")
    parser.add_argument("text", type=Path)
    parser.add_argument("--ratio", type=float, default=0.1, help="removed / all parameters")
    parser.add_argument("--cluster", default="local", help="inline: evaluates in this process")
    args = parser.parse_args()

    run = multipruner.prune(
        args.model,
        target=args.ratio,
        text=args.text,
        model={"dtype": "float32"},
        calibration=CALIBRATION,
        cluster=args.cluster,
    )
    print(run.trajectory[["layer", "kind", "remaining", "ratio", "perplexity"]])
    print("half way:", run.at(args.ratio / 2).text, "at the end:", run.shape.text)
    prompt = run.tokenizer("The old tree", return_tensors="pt")
    print("next token:", run.tokenizer.decode(run.model(**prompt).logits[0, -1].argmax()))
    report = run.evaluate(texts=[args.text], evaluation="perplexity", cluster=args.cluster)
    print("perplexity:", report["perplexity"], "dense:", report["dense"]["perplexity"])
    print("written:", run.export("transformers"))


if __name__ == "__main__":
    main()
