"""Names in MLflow: all in one file, and the ones that people's charts are made of."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from pipelines.tracking import metrics
from pruning.shape import ModelShape
from tests.conftest import ROOT

NAMED = re.compile(r"((prune|result|eval\w*|sweep)/\w|(mlflow|resolved|version|grid)\.\w*$)")


def literals(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = node.value.removeprefix("metrics.`").removeprefix("tags.`")
            if " " not in found and NAMED.match(found):
                yield found


def test_a_name_is_spelt_out_in_one_file() -> None:
    assert len(set(literals(Path(metrics.__file__)))) > 10
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in sorted((ROOT / "pipelines").rglob("*.py"))
        if path != Path(metrics.__file__)
        for name in literals(path)
    }
    assert found == set()


def test_the_check_sees_literals(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text('{"prune/ratio": 1, f"version.{x}": 2, "tags.`mlflow.x": 3}')
    assert sorted(literals(tmp_path / "bad.py")) == ["mlflow.x", "prune/ratio", "version."]


def test_names_of_a_search() -> None:
    line = dict.fromkeys(
        ("perplexity", "nll", "ratio", "num_parameters", "flops_per_token", "margin", "seconds"), 1
    )
    line |= {"evaluations": 3, "candidates": [1, 2], "removed": {"kind": "mlp", "layer": 5}}
    found = metrics.step_metrics(line)
    assert set(found) == {
        "prune/perplexity",
        "prune/nll",
        "prune/ratio",
        "prune/num_parameters",
        "prune/flops_per_token",
        "prune/margin",
        "prune/margin_stderr",
        "prune/seconds",
        "prune/evaluations",
        "prune/num_candidates",
        "prune/removed_layer",
    }
    assert found["prune/removed_layer"] == 5
    dense = metrics.dense_metrics(nll=2.0, perplexity=7.4, num_parameters=9, flops_per_token=18)
    assert set(dense) < set(found)
    pair = {"dense": 1.0, "pruned": 2.0}
    summary = dict.fromkeys(
        ("num_parameters", "flops_per_token", "kv_cache_bytes_per_token"), pair
    ) | {"ratio": 0.2, "perplexity": {"heldout": pair}}
    assert metrics.result_metrics(summary) == {
        "result/heldout_perplexity": 2.0,
        "result/heldout_perplexity_dense": 1.0,
        "result/num_parameters": 2.0,
        "result/flops_per_token": 2.0,
        "result/kv_cache_bytes_per_token": 2.0,
        "result/ratio": 0.2,
    }
    assert metrics.search_params(
        {"search": {"seed": 1}, "export": None}, {"model": "f"}, "/out"
    ) == {"search.seed": 1, "resolved.model": "f", "output_dir": "/out"}
    assert metrics.search_tags(
        model="f",
        model_type="llama",
        calibration={"block": "b"},
        versions={"ray": "2"},
        revision="c",
    ) == {
        "version.ray": "2",
        "model.fingerprint": "f",
        "model.type": "llama",
        "calibration.block.fingerprint": "b",
        "mlflow.source.name": "pipelines.prune",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": "c",
    }


def test_names_of_a_sweep_and_of_an_evaluation() -> None:
    row = {"ratio": 0.2, "values": {"accuracy": 0.5}}
    assert metrics.sweep_metrics(row) == {"sweep/ratio": 0.2, "sweep/accuracy": 0.5}
    assert metrics.sweep_params({"search.seed": [1, 2]}, "/out") == {
        "grid.search.seed": [1, 2],
        "output_dir": "/out",
    }
    source = {"mlflow.source.type": "LOCAL", "mlflow.source.name": "pipelines.sweep"}
    assert metrics.sweep_tags({"ray": "2"}) == {"version.ray": "2", **source}
    assert metrics.evaluation_tags("f", of_search=True) == {"evaluation.model.fingerprint": "f"}
    assert metrics.evaluation_tags("f", of_search=False) == {
        "evaluation.model.fingerprint": "f",
        **source,
        "mlflow.source.name": "pipelines.evaluate",
    }
    measured = {"perplexity": {"wikitext2": 9.0}, "tasks": {"piqa": {"acc,none": 0.6}}}
    report = measured | {
        "shape": "s",
        "average": None,
        "dense": measured | {"average": 0.7},
        "cost": {"pruned": {"disk_bytes": 5}, "ratio": {"decode_tokens_per_s": {"median": 1.2}}},
        "engines": {"llama.cpp": {"ratio": {"decode_tokens_per_s": {"median": 1.1}}}},
    }
    assert metrics.evaluation_metrics(report) == {
        "eval/wikitext2/token_perplexity": 9.0,
        "eval/piqa/acc:none": 0.6,
        "eval_dense/wikitext2/token_perplexity": 9.0,
        "eval_dense/piqa/acc:none": 0.6,
        "eval_dense/average": 0.7,
        "eval_cost/disk_bytes": 5.0,
        "eval_cost_ratio/decode_tokens_per_s": 1.2,
        "eval_cost_ratio/llama.cpp/decode_tokens_per_s": 1.1,
    }
    params = metrics.evaluation_params({"limit": 3}, model="m", source="/m", shape=None)
    assert params == {"evaluation.limit": 3, "model": "m", "source": "/m", "shape": None}


def test_what_remains_of_each_layer_and_where_the_time_went() -> None:
    dense = ModelShape.parse("4x100*3")
    found = metrics.layer_metrics(ModelShape.parse("0x100 4x25 2x0"), dense)
    assert found == [
        {"layer/attention": 0, "layer/mlp": 100},
        {"layer/attention": 100, "layer/mlp": 25},
        {"layer/attention": 50, "layer/mlp": 0},
    ]
    lines = [{"stage": "block", "seconds": 2.0}, {"stage": "block", "seconds": 1.5}]
    lines.append({"stage": "attention_heads", "seconds": 0.5})
    times = {"time/blocks": 3.5, "time/mlp_channels": 0, "time/attention_heads": 0.5}
    assert metrics.time_metrics(lines, 10.0) == times | {"time/other": 6.0}
    assert metrics.time_metrics(lines, None) == times, "several processes took them"
