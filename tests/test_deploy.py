"""Pruned networks are ordinary ones: torch.export, ONNX and torch.compile take them."""

from __future__ import annotations

import io
import shutil
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.surgery import PrunePlan
from mipprune.surgery.verify import first_tensor
from mipprune.testing.architectures import ARCHITECTURES, HUGGING_FACE
from mipprune.testing.cases import NETWORKS, NetworkCase

from .test_graph import cases, masks

everywhere = pytest.mark.parametrize(
    "case", [*NETWORKS, *(pytest.param(c, marks=pytest.mark.slow) for c in (*ARCHITECTURES, *HUGGING_FACE))],
    ids=lambda c: c.name,
)


def pruned(case: NetworkCase) -> tuple[nn.Module, torch.Tensor]:
    if case in HUGGING_FACE:
        pytest.importorskip("transformers")
    model, x = case.build(), case.inputs(4)
    graph = mp.trace(model, x)
    return PrunePlan.from_mask(graph, masks(graph.n_units, 1, graph.costs.sizes, seed=4)[0]).apply(model), x


@everywhere
def test_export(case: NetworkCase) -> None:
    small, x = pruned(case)
    program = torch.export.export(small, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file).module()
    other = case.inputs(7, seed=1)  # another batch size
    torch.testing.assert_close(again(other), small(other), rtol=0, atol=1e-5)


@cases
def test_tracing_and_pruning_again(case: NetworkCase) -> None:
    """The smaller network is as good a start as the dense one was."""
    small, x = pruned(case)
    graph = mp.trace(small, x)
    kept = masks(graph.n_units, 1, graph.costs.sizes, seed=6)[0]
    smaller = PrunePlan.from_mask(graph, kept).apply(small)
    torch.testing.assert_close(smaller(x), graph.program.run([x], torch.from_numpy(kept).float()), rtol=0, atol=1e-5)


#: Views of transposed attention outputs that torch's exporter can't decompose.
NOT_CONVERTED = ("t5_encoder", "swin")


def to_onnx(model: nn.Module, x: torch.Tensor) -> torch.onnx.ONNXProgram | None:
    return torch.onnx.export(
        model, (x,), dynamo=True, verbose=False, input_names=["x"], dynamic_shapes=({0: torch.export.Dim("batch")},)
    )


@pytest.mark.slow
@everywhere
def test_onnx(case: NetworkCase) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    small, x = pruned(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = to_onnx(small, x)
        except Exception:
            if case.name not in NOT_CONVERTED:
                raise
            with pytest.raises(torch.onnx._internal.exporter._errors.ConversionError):
                to_onnx(case.build(), x)  # once torch converts the dense network, the pruned one has to follow
            pytest.skip("torch's ONNX exporter can't convert the dense network either")
    assert program is not None
    file = io.BytesIO()
    program.save(file)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    other = case.inputs(7, seed=1)
    out = session.run(None, {"x": other.numpy()})[0]
    np.testing.assert_allclose(out, first_tensor(small(other)).detach().numpy(), rtol=0, atol=1e-4)


@pytest.mark.slow
@cases
def test_compile(case: NetworkCase) -> None:
    small, x = pruned(case)
    torch._dynamo.reset()
    backend = "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"
    fast = torch.compile(small, fullgraph=True, backend=backend)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), small(x), rtol=0, atol=1e-4)


@cases
def test_compiled_training(case: NetworkCase) -> None:
    small, x = pruned(case)
    torch._dynamo.reset()
    torch.compile(small, fullgraph=True, backend="aot_eager")(x).sum().backward()
    compiled = [p.grad for p in small.parameters()]
    small.zero_grad()
    small(x).sum().backward()
    torch.testing.assert_close(compiled, [p.grad for p in small.parameters()], rtol=1e-4, atol=1e-5)
