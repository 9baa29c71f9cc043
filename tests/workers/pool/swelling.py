"""A search, in a process and on a Ray of its own, one of whose evaluators takes memory until it is
killed: CHECKPOINT TOKENS. Says as JSON what came of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.numpy import load_file

from pruning.models.checkpoint import Checkpoint
from tests.workers.pool.misbehaving import Swells
from tests.workers.pool.scoring import search
from workers.cluster.placement import Placement
from workers.cluster.ray_session import local_ray
from workers.pool.inline_pool import InlinePool
from workers.pool.ray_pool import RayPool
from workers.tasks import EvaluatorSpec

if __name__ == "__main__":
    checkpoint, token_file = map(Path, sys.argv[1:])
    ids = load_file(token_file)["input_ids"]
    sets = {"block": ids[:8], "width": ids[:4]}
    spec = EvaluatorSpec(Checkpoint(checkpoint), "float32", sets, batch_size=2)
    expected = search(InlinePool(spec))
    with local_ray(2, 0), RayPool(spec, Placement(1, num_gpus=0), kind=Swells) as pool:
        outcome = {"equal": search(pool) == expected, **pool.faults.counters()}
    sys.stdout.write(json.dumps(outcome) + "\n")
