"""What the connected cluster has."""

from __future__ import annotations

from dataclasses import replace

import ray
from ray._private.state import available_resources_per_node

from workers.cluster.machine import Node


def nodes() -> tuple[Node, ...]:
    """The nodes of the cluster, the dead ones too, in the order of their addresses."""
    found = []
    for node in ray.nodes():
        has = node["Resources"]
        num_cpus, num_gpus, memory_bytes = (
            int(has.get(name, 0)) for name in ("CPU", "GPU", "memory")
        )
        found.append(
            Node(
                node["NodeID"],
                node["NodeManagerAddress"],
                num_cpus,
                num_gpus,
                memory_bytes,
                node["Alive"],
                node.get("Labels") or {},
            )
        )
    return tuple(sorted(found, key=lambda node: (node.address, node.node_id)))


def free_nodes() -> tuple[Node, ...]:
    """The nodes that are alive, with what nobody uses of them."""
    free = available_resources_per_node()
    return tuple(
        replace(
            node,
            num_cpus=int(free.get(node.node_id, {}).get("CPU", 0)),
            num_gpus=int(free.get(node.node_id, {}).get("GPU", 0)),
            memory_bytes=int(free.get(node.node_id, {}).get("memory", 0)),
        )
        for node in nodes()
        if node.alive
    )


def describe_cluster() -> str:
    """All of it, in words."""
    count = sum(node.alive for node in nodes())
    return f"{_words(ray.cluster_resources())} on {count} node{'s' if count != 1 else ''}"


def describe_free() -> str:
    """What nobody uses, in words."""
    return _words(ray.available_resources())


def _words(resources: dict[str, float]) -> str:
    return f"{resources.get('GPU', 0):g} GPU and {resources.get('CPU', 0):g} CPU"
