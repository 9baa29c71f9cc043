"""Compensation against an independent computation: normal equations in float64 by numpy, of inputs
that the test collects itself.
"""

from __future__ import annotations

import copy
import gc
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pruning.compensation import statistics as statistics_module
from pruning.compensation.least_squares import (
    Compensation,
    cholesky_factor,
    compensated,
    relative_error,
)
from pruning.compensation.statistics import (
    BlockStatistics,
    LayerStatistics,
    collect_statistics,
    projections,
)
from pruning.errors import InputError
from pruning.export.reference import reference_of
from pruning.export.transformers import pruned_model
from pruning.importance.channel_order import (
    STATISTICS,
    ChannelOrder,
    CompensationSource,
    channel_order,
)
from pruning.models.families import FAMILIES
from pruning.models.loaded_model import LoadedModel
from pruning.recovery.prepared import prepared
from pruning.scoring.kl import dense_outputs, divergence
from pruning.scoring.masking import masked
from pruning.scoring.nll import run_prefix, sequence_nll
from pruning.shape import ModelShape
from tests.conftest import tiny_config, tiny_model, tokens

NARROW = ModelShape.parse("2x32 3x48 0x16 1x40")
RIDGE = 0.01


def batches() -> Iterator[torch.Tensor]:
    """More tokens than channels: 3 x 40 x 24."""
    return iter(tokens(120, 24).split(40))


def dense_model(model_type: str) -> LoadedModel:
    return LoadedModel.of(tiny_model(tiny_config(model_type)))


def compensating(dense: LoadedModel, folder: Path, ridge: float = RIDGE) -> ChannelOrder:
    """Statistics in a folder, and the order that goes with them."""
    layers = collect_statistics(dense, batches())
    statistics = BlockStatistics.of(layers, 120 * 24)
    statistics.save(folder / STATISTICS)
    source = CompensationSource(str(folder / STATISTICS), statistics.fingerprint, ridge)
    return replace(statistics.order(dense), compensation=source)


def inputs_of(dense: LoadedModel, layer: int, kind: int) -> np.ndarray:
    """[tokens, channels] float64 of what flows into one projection, as a plain hook sees it."""
    seen: list[torch.Tensor] = []
    handle = projections(dense)[layer][kind].register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0].detach().flatten(0, 1).double())
    )
    with torch.inference_mode():
        for batch in batches():
            dense.model(batch, use_cache=False)
    handle.remove()
    return torch.cat(seen).numpy()


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_family_against_normal_equations(model_type: str, tmp_path: Path) -> None:
    """min over V of |A W^T - A_S V^T|^2 with the ridge's rows below, by `numpy.linalg`."""
    dense = dense_model(model_type)
    stored = LoadedModel.of(copy.deepcopy(dense.model))
    order = compensating(dense, tmp_path)
    ready = prepared(dense, order)
    for layer, remaining in enumerate(NARROW.layers):
        for kind, block in enumerate(("attention", "mlp")):
            heads = np.array(order.kv_heads[layer])
            per_head = dense.geometry.channels_per_kv_head
            indices = (
                (heads[:, None] * per_head + np.arange(per_head)).flatten()
                if kind == 0
                else np.array(order.mlp_channels[layer])
            )
            kept = remaining.kv_heads * per_head if kind == 0 else remaining.mlp_channels
            if kept in (0, len(indices)):
                continue
            inputs = inputs_of(stored, layer, kind)[:, indices]
            weight = projections(stored)[layer][kind].weight.detach().double().numpy()[:, indices]
            ridge = RIDGE * (inputs**2).sum(axis=0).mean()
            # The ridge holds W' to W_S and what is carried from R to 0, as in the definition.
            gram = inputs.T @ inputs + ridge * np.eye(len(indices))
            expected = (
                weight[:, :kept]
                + np.linalg.solve(gram[:kept, :kept], gram[:kept, kept:] @ weight[:, kept:].T).T
            )
            module = projections(ready)[layer][kind]
            assert ready.compensation is not None
            weights = module.weight
            found = ready.compensation.weight(weights, layer, block, kept)  # type: ignore[arg-type]
            assert found.double().numpy() == pytest.approx(expected, abs=2e-5)
            assert np.abs(expected - weight[:, :kept]).max() > 1e-3, "it refits something"


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_what_is_exported_computes_what_is_masked(model_type: str, tmp_path: Path) -> None:
    dense = dense_model(model_type)
    ready = prepared(dense, compensating(dense, tmp_path))
    batch = tokens(2, 24, seed=5)
    with torch.inference_mode():
        with masked(ready, NARROW):
            wanted = ready.model(batch, use_cache=False).logits
        with masked(replace(ready, compensation=None), NARROW):
            plain = ready.model(batch, use_cache=False).logits
        found = pruned_model(ready, NARROW)(batch, use_cache=False).logits
    assert (found - wanted).abs().max() < 1e-4
    assert (plain - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("written", ["float32", "bfloat16"])
def test_the_reference_of_an_export_is_refitted_before_it_is_rounded(
    written: str, tmp_path: Path
) -> None:
    """As the tensors in the folder are: made in the type of the weights, then cast."""
    order = compensating(dense_model("llama"), tmp_path)
    batch = tokens(2, 24, seed=5)
    ready = prepared(dense_model("llama"), order)
    found = reference_of(ready, NARROW, batch, stored="float32", written=written)
    exported = pruned_model(prepared(dense_model("llama"), order), NARROW)
    for parameter in exported.parameters():
        parameter.data = parameter.data.to(getattr(torch, written)).float()
    with torch.inference_mode():
        wanted = exported(batch, use_cache=False).logits
    scale = max(1.0, float(wanted.abs().max()))
    assert (found.logits - wanted).abs().max() / scale < 1e-5


def test_masking_puts_everything_back(tmp_path: Path) -> None:
    dense = dense_model("llama")
    ready = prepared(dense, compensating(dense, tmp_path))
    before = {name: id(value) for name, value in ready.model.named_parameters()}
    with masked(ready, NARROW):
        pass
    assert {name: id(value) for name, value in ready.model.named_parameters()} == before


def test_it_lowers_the_error_on_text_that_it_did_not_see() -> None:
    dense = dense_model("llama")
    statistics = collect_statistics(dense, batches())
    unseen = collect_statistics(dense, [tokens(60, 24, seed=9)])
    weight = projections(dense)[1][1].weight
    factor = cholesky_factor(statistics[1].mlp, RIDGE)
    refitted = relative_error(weight, compensated(weight, factor, 32), unseen[1].mlp)
    plain = relative_error(weight, weight[:, :32], unseen[1].mlp)
    assert refitted < 0.9 * plain
    assert relative_error(weight, weight, unseen[1].mlp) == 0
    assert relative_error(torch.zeros(8, 4), torch.zeros(8, 2), torch.eye(4)) == 0


@pytest.mark.parametrize("kept", [1, 16, 47])
def test_one_factor_serves_every_width(kept: int) -> None:
    draw = torch.Generator().manual_seed(3)
    inputs, weight = torch.randn(200, 48, generator=draw), torch.randn(8, 48, generator=draw)
    whole = cholesky_factor(inputs.T @ inputs, RIDGE)
    ridge = RIDGE * float((inputs.double() ** 2).sum(dim=0).mean())
    gram = (inputs.T @ inputs).double() + ridge * torch.eye(48, dtype=torch.float64)
    alone = torch.linalg.solve(gram[:kept, :kept], gram[:kept, kept:] @ weight[:, kept:].double().T)
    expected = (weight[:, :kept].double() + alone.T).float()
    assert torch.allclose(compensated(weight, whole, kept), expected, atol=1e-5)


def test_statistics_do_not_depend_on_which_layers_are_collected_together() -> None:
    dense = dense_model("llama")
    together = collect_statistics(dense, batches())
    apart = [collect_statistics(dense, batches(), [layer]) for layer in (2, 0, 3, 1)]
    joined = BlockStatistics.of({k: v for each in apart for k, v in each.items()}, 2880)
    assert joined.fingerprint == BlockStatistics.of(together, 2880).fingerprint
    assert re.fullmatch("[0-9a-f]{32}", joined.fingerprint)


@pytest.mark.parametrize("model_type", ["llama", "phi3", "olmo2"])
def test_the_order_is_that_of_activation(model_type: str) -> None:
    dense = dense_model(model_type)
    found = BlockStatistics.of(collect_statistics(dense, batches()), 2880).order(dense)
    assert found.fingerprint == channel_order(dense, "activation", batches()).fingerprint


def test_dead_channels_and_few_tokens_are_met_by_the_ridge() -> None:
    inputs = torch.zeros(4, 48)
    inputs[:, :3] = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(8, 48, generator=torch.Generator().manual_seed(1))
    found = compensated(weight, cholesky_factor(inputs.T @ inputs, RIDGE), 16)
    assert torch.isfinite(found).all()
    assert torch.equal(found[:, 3:], weight[:, 3:16]), "dead channels take nothing on"
    dead = compensated(weight, cholesky_factor(torch.zeros(48, 48), RIDGE), 16)
    assert torch.equal(dead, weight[:, :16])


def test_a_factor_is_made_without_an_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 11,008 channels one takes 1 GB. The bits are those of the formula, and what was given
    stays.
    """
    inputs = torch.randn(200, 48, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gram = inputs.T @ inputs
    before, ridge = gram.clone(), RIDGE * gram.diagonal().mean()
    expected = torch.linalg.cholesky(gram + ridge * torch.eye(48, dtype=torch.float64))
    monkeypatch.setattr(torch, "eye", lambda *_, **__: pytest.fail("an identity matrix"))
    assert torch.equal(cholesky_factor(gram, RIDGE), expected)
    assert torch.equal(gram, before)


def test_sums_go_while_statistics_are_made_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of each of the four layers: never all sums beside all that is made of them."""
    left: list[int] = []

    def count(*grams: torch.Tensor) -> LayerStatistics:
        left.append(
            sum(
                type(each) is torch.Tensor
                and each.dtype == torch.float64
                and each.shape == (48, 48)
                for each in gc.get_objects()
            )
        )
        return LayerStatistics(*grams)

    dense = dense_model("llama")
    monkeypatch.setattr(statistics_module, "LayerStatistics", count)
    collect_statistics(dense, batches())
    assert left == [6, 4, 2, 0]


def test_statistics_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        cholesky_factor(torch.full((4, 4), torch.nan), RIDGE)


def test_other_statistics_or_none_are_refused(tmp_path: Path) -> None:
    dense = dense_model("llama")
    order = compensating(dense, tmp_path)
    assert order.compensation is not None
    other = replace(order, compensation=replace(order.compensation, statistics="0" * 32))
    with pytest.raises(InputError, match="not 00000000"):
        Compensation(other, dense.geometry)
    (tmp_path / STATISTICS).unlink()
    with pytest.raises(InputError, match="cannot be read"):
        Compensation(order, dense.geometry)


def test_an_order_keeps_what_compensates(tmp_path: Path) -> None:
    dense = dense_model("llama")
    order = compensating(dense, tmp_path)
    order.save(tmp_path / "channel_order.safetensors")
    again = ChannelOrder.load(tmp_path / "channel_order.safetensors")
    assert again.compensation == order.compensation
    assert again.fingerprint == order.fingerprint
    assert order.fingerprint != replace(order, compensation=None).fingerprint


def test_divergence_against_whole_distributions(tmp_path: Path) -> None:
    """KL and NLL of a compensated candidate from logits of whole forwards, in float64."""
    dense = dense_model("gemma3_text")
    ready = prepared(dense, compensating(dense, tmp_path))
    batch = tokens(3, 24, seed=4)
    prefix = run_prefix(ready, ready.geometry.dense, batch)
    kl, nll = divergence(ready, prefix, dense_outputs(ready, batch), [NARROW])
    with torch.inference_mode():
        log_p = ready.model(batch, use_cache=False).logits[:, :-1].double().log_softmax(-1)
        with masked(ready, NARROW):
            log_q = ready.model(batch, use_cache=False).logits[:, :-1].double().log_softmax(-1)
            expected_nll = sequence_nll(ready.model, batch)
    expected = (log_p.exp() * (log_p - log_q)).sum(dim=(1, 2))
    assert kl[0].numpy() == pytest.approx(expected.numpy(), rel=1e-4)
    assert nll[0].numpy() == pytest.approx(expected_nll.numpy(), rel=1e-5)
    assert kl.min() > 0.1
