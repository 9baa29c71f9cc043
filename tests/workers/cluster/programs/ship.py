"""Joins the cluster that RAY_ADDRESS names, with one more package, and asks actors on its nodes
what they see of the driver's code and environment.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import ray

from pruning.errors import InputError
from workers.cluster.ray_session import joined_ray
from workers.cluster.resources import describe_cluster, nodes


class Witness:
    """On some node."""

    def tell(self, with_torch: bool) -> dict[str, Any]:
        import extra_module
        import pruning.marker

        import workers

        if with_torch:
            import workers.evaluators.shapes
        names = ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HOME")
        return {
            "node": ray.get_runtime_context().get_node_id(),
            "files": [module.__file__ for module in (workers, pruning.marker, extra_module)],
            "installed": importlib.util.find_spec("pipelines") is not None,
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "environment": {name: os.environ.get(name) for name in names},
            "cwd": [path.name for path in Path.cwd().iterdir()],
        }


def other_cluster() -> str:
    """What is said of another one."""
    try:
        with joined_ray("127.0.0.1:1", allow_open=False, timeout_s=1):
            return "joined"
    except InputError as error:
        return str(error)


extra = Path("elsewhere/extra_module").resolve()
with joined_ray("auto", allow_open=False, timeout_s=20, extra_modules=[extra]):
    facts: dict[str, Any] = {
        "nodes": [astuple(node) for node in nodes()],
        "text": describe_cluster(),
    }
    with joined_ray(os.environ["RAY_ADDRESS"], allow_open=False, timeout_s=1):
        pass
    facts["other"] = other_cluster()
    start: Any = ray.remote(Witness)
    actors = [start.options(num_cpus=1).remote() for _ in range(2)]
    actors += [start.options(num_cpus=0, num_gpus=1).remote() for _ in range(2)]
    told = [actor.tell.remote(number == 0) for number, actor in enumerate(actors)]
    facts["witnesses"] = ray.get(told)
sys.stdout.write(json.dumps(facts) + "\n")
