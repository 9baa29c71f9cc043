"""The run on Kubernetes: it goes on after a lost cluster, and its pods are restricted."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import ROOT
from tests.docker.files import SECRET_NAME, load, pins, pods


def test_versions_in_manifests_are_those_that_are_pinned(rayjob: Any) -> None:
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == pins(ROOT / "constraints.txt")["ray"]


def test_rayjob_outlives_its_cluster(rayjob: Any) -> None:
    spec = rayjob["spec"]
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] > 0
    options = dict(word.split("=", 1) for word in spec["entrypoint"].split() if "=" in word)
    mounts = {
        mount["name"]: mount["mountPath"]
        for mount in pods(rayjob)["head"]["containers"][0]["volumeMounts"]
    }
    assert options["output_dir"].startswith(mounts["outputs"] + "/"), "state outlives the cluster"
    assert options["model.path"].startswith(mounts["models"] + "/")
    [group] = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert (
        group["minReplicas"]
        <= group["replicas"]
        <= group["maxReplicas"]
        == int(options["cluster.num_evaluators"])
    )
    [worker] = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == int(
        options["cluster.num_gpus_per_evaluator"]
    )
    assert worker["volumeMounts"] == pods(rayjob)["head"]["containers"][0]["volumeMounts"]
    assert (
        len(
            {container["image"] for pod in pods(rayjob).values() for container in pod["containers"]}
        )
        == 1
    )


def test_rayjob_secrets_are_references_on_the_head_alone(rayjob: Any) -> None:
    for name, pod in pods(rayjob).items():
        for variable in pod["containers"][0].get("env", []):
            if SECRET_NAME.search(variable["name"]) or variable["name"].startswith("MLFLOW"):
                assert name == "head"
                assert variable["valueFrom"]["secretKeyRef"] == {
                    "name": "multipruner",
                    "key": variable["name"],
                }


def test_nodes_that_are_kept_for_gpus_take_the_workers(rayjob: Any) -> None:
    [toleration] = pods(rayjob)["gpu"]["tolerations"]
    limits = pods(rayjob)["gpu"]["containers"][0]["resources"]["limits"]
    assert toleration["key"] in limits
    assert (toleration["operator"], toleration["effect"]) == ("Exists", "NoSchedule")
    assert "tolerations" not in pods(rayjob)["head"]


def test_the_network_policy_closes_the_pods_of_the_job_and_no_others(rayjob: Any) -> None:
    policy = load("networkpolicy.yaml")["spec"]
    labels = policy["podSelector"]["matchLabels"]
    cluster = rayjob["spec"]["rayClusterSpec"]
    templates = [
        rayjob["spec"]["submitterPodTemplate"],
        cluster["headGroupSpec"]["template"],
        *(group["template"] for group in cluster["workerGroupSpecs"]),
    ]
    assert labels
    assert all(template["metadata"]["labels"] == labels for template in templates)
    assert policy["policyTypes"] == ["Ingress"]
    own, operator = policy["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": labels}}]}
    ports = {port["port"] for port in operator["ports"]}
    head = pods(rayjob)["head"]["containers"][0]["ports"]
    assert {each["containerPort"] for each in head if each["name"] == "dashboard"} <= ports
    assert 6379 not in ports
    [source] = operator["from"]
    assert "podSelector" in source, "not whole namespaces"


@pytest.mark.parametrize("name", ["head", "gpu", "submitter"])
def test_rayjob_pods_are_restricted(rayjob: Any, name: str) -> None:
    pod = pods(rayjob)[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]
        assert "cpu" in container["resources"]["requests"]
    assert (
        rayjob["spec"]["rayClusterSpec"]["autoscalerOptions"]["securityContext"][
            "allowPrivilegeEscalation"
        ]
        is False
    )
