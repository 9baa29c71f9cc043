"""The schemas of all commands and groups, by the names that `conf/` calls them."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore

from pipelines.config.calibration import CalibrationConfig
from pipelines.config.evaluate import EvaluateConfig
from pipelines.config.export import ExportConfig
from pipelines.config.groups import (
    ClusterConfig,
    EvaluationConfig,
    ModelConfig,
    StoreConfig,
    TrackingConfig,
)
from pipelines.config.latency import LatencyConfig
from pipelines.config.plan import PlanConfig
from pipelines.config.prune import PruneConfig
from pipelines.config.recover import RecoverConfig
from pipelines.config.recovery import RecoveryConfig
from pipelines.config.report import ReportConfig
from pipelines.config.reproduce import ReproduceConfig
from pipelines.config.search import SearchConfig
from pipelines.config.solve import SolveConfig
from pipelines.config.sweep import SweepConfig


def register() -> None:
    """Puts the schemas where Hydra finds them; the files of `conf/` extend them."""
    store = ConfigStore.instance()
    store.store(name="prune_schema", node=PruneConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(name="export_schema", node=ExportConfig)
    store.store(name="latency_schema", node=LatencyConfig)
    store.store(name="plan_schema", node=PlanConfig)
    store.store(name="recover_schema", node=RecoverConfig)
    store.store(name="report_schema", node=ReportConfig)
    store.store(name="solve_schema", node=SolveConfig)
    store.store(name="sweep_schema", node=SweepConfig)
    store.store(name="reproduce_schema", node=ReproduceConfig)
    groups = {
        "model": ModelConfig,
        "calibration": CalibrationConfig,
        "search": SearchConfig,
        "recovery": RecoveryConfig,
        "cluster": ClusterConfig,
        "tracking": TrackingConfig,
        "store": StoreConfig,
        "evaluation": EvaluationConfig,
    }
    for group, schema in groups.items():
        store.store(group=group, name="schema", node=schema)
