"""Score one shape of a model on a text: python score_shape.py MODEL TEXT [--shape SHAPE].

SHAPE is what remains, as KV heads x MLP channels of each layer: "4x172*2 0x172 4x43" has no
attention in its third layer and a quarter of the MLP channels in its fourth.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from pruning.calibration.windows import text_windows
from pruning.importance.channel_order import ChannelOrder, channel_order
from pruning.models.find import find_checkpoint
from pruning.models.loaded_model import LoadedModel
from pruning.recovery.prepared import prepared
from pruning.scoring.masking import masked
from pruning.scoring.nll import sequence_nll
from pruning.scoring.score import ShapeScore, perplexity
from pruning.shape import ModelShape, Removal


def score(loaded: LoadedModel, shape: ModelShape, windows_NT: torch.Tensor) -> ShapeScore:
    """NLL of a shape on int64 [N, T] tokens: the dense model computes as the shape meanwhile."""
    with masked(loaded, shape):
        nll = [float(sequence_nll(loaded.model, window_T[None])) for window_T in windows_NT]
    return ShapeScore(tuple(nll), num_tokens=windows_NT.shape[1] - 1)


def main() -> None:
    """Prints the scores of the dense model and of the shape."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="a folder, a .gguf file, or a hub id")
    parser.add_argument("text", type=Path)
    parser.add_argument("--shape", type=ModelShape.parse, help="default: no MLP in layer 1")
    parser.add_argument("--order", type=Path, help="channel_order.safetensors of a search")
    parser.add_argument("--length", type=int, default=256, help="tokens of a window")
    args = parser.parse_args()

    checkpoint = find_checkpoint(args.model)
    loaded = LoadedModel.of(checkpoint.load(dtype="float32"))
    order = ChannelOrder.load(args.order) if args.order else channel_order(loaded, "l1")
    loaded = prepared(loaded, order)  # sorted: a shape keeps the first heads and channels
    text = args.text.read_text(encoding="utf-8")
    windows_NT = torch.from_numpy(text_windows(checkpoint.tokenizer(), text, args.length))

    dense = loaded.geometry.dense
    removed = dense.without(Removal("mlp", layer=1, remaining=0))
    for shape in (dense, args.shape or removed):
        nll = score(loaded, shape, windows_NT).nll
        print(f"{shape.text}: NLL {nll:.6f}, perplexity {perplexity(nll)}")


if __name__ == "__main__":
    main()
