"""Triton kernels on CPU tensors, in processes of their own where Triton interprets everything.

Whether Triton interprets is decided when it is imported, and the test process may need to compile.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hal.conformance.run import Record
from hal.device import Device
from hal.kernels.reference.quantized_rows import QuantizedRows
from hal.weights import WeightFormat

NUM_PROCESSES = 2


def interpreters() -> ProcessPoolExecutor:
    """Processes that run `run_case`."""
    return ProcessPoolExecutor(
        NUM_PROCESSES, mp_context=get_context("spawn"), initializer=_start_interpreting
    )


def submit_case(pool: ProcessPoolExecutor, op: str, case: str, profile: str) -> Future[Record]:
    """Runs the op's Triton kernel on one case of its op, on a CPU that poses as `profile`."""
    return pool.submit(run_case, op, case, profile)


def run_case(op: str, case: str, profile: str) -> Record:
    from hal.conformance.cases import cases_by_op
    from hal.conformance.run import conform
    from hal.select import OPS

    found = next(c for c in cases_by_op()[op] if c.label == case)
    return conform(OPS[op].kernels["triton"], found, posed_device(profile))


def posed_device(profile: str) -> Device:
    """The CPU's memory under another device's capabilities."""
    from hal.devices.cpu import CpuDevice
    from hal.profiles import find_profile

    return CpuDevice(find_profile(profile).capabilities())


def _start_interpreting() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    repair_interpreter()
    from hal.kernels import register_all

    register_all()


def repair_interpreter() -> None:
    """Cures what Triton 3.6 and 3.9 get wrong here: bfloat16, kept as 16-bit integers, is
    multiplied as integers and rounded towards zero; 3.6 with numpy 2.4 refuses `range` over a
    loaded number."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    dot, cast, patch = builder.create_dot, builder.cast_impl, interpreter._patch_lang_tensor

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        if tl.bfloat16 not in (a.dtype.scalar, b.dtype.scalar):
            return dot(self, a, b, d, precision, imprecise)
        product = np.matmul(_widened(a.data), _widened(b.data)) + d.data
        return interpreter.TensorHandle(product.astype(d.data.dtype), d.dtype.scalar)

    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        if to.scalar != tl.bfloat16 or source.dtype.scalar != tl.float32:
            return cast(self, source, to)
        return interpreter.TensorHandle(_rounded(source.data), to.scalar)

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    builder.create_dot, builder.cast_impl = create_dot, cast_impl
    interpreter._patch_lang_tensor = patch_lang_tensor


def _widened(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Float32 of bfloat16's bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _rounded(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """bfloat16's bits of float32, to nearest even."""
    rounded = torch.from_numpy(np.atleast_1d(values)).bfloat16()
    return rounded.view(torch.int16).numpy().view(np.uint16).reshape(values.shape)


def round_activations(x: torch.Tensor, format: WeightFormat) -> QuantizedRows:
    """x [num_tokens, columns] to codes by the Triton programs, in a process that interprets."""
    from hal.binding import Arena, Binder
    from hal.kernels.triton.rounding import GroupRounding, TokenRounding
    from hal.select import Selector

    device = posed_device("h100")
    binder = Binder(Selector(device.capabilities, is_present=False), Arena(len(x)), device)
    columns = x.shape[1]
    group_size = format.activation_group or columns
    rounding = (
        TokenRounding(columns, binder)
        if format.activation_group is None
        else GroupRounding(columns, -(-columns // 64) * 64, binder)
    )
    binder.arena.allocate(device)
    codes, scales = rounding(x)
    num_groups = -(-columns // group_size)
    assert not codes[:, columns:].any() and not scales[:, num_groups:].any()
    return QuantizedRows(codes[:, :columns].clone(), scales[:, :num_groups].clone(), group_size)


def answer(folder: Path, profile: str, settings: dict[str, Any]) -> list[list[int]]:
    """Greedy tokens of an engine whose device poses as `profile`: torch's and Triton's kernels."""
    from unittest.mock import patch

    from hal.devices import Opened

    opened = Opened(posed_device(profile), profile, "posed for a test")
    with patch("hal.build.open_device", lambda _spec: opened):
        return greedy_tokens(folder, profile, settings)


def greedy_tokens(folder: Path, device: str, settings: dict[str, Any]) -> list[list[int]]:
    """Of two prompts, one of which comes in two chunks."""
    from hal.build import build_engine
    from hal.config import EngineConfig
    from hal.engine.request import Request
    from hal.sampling_params import SamplingParams

    limits = {"max_num_seqs": 2, "max_model_len": 64, "max_num_batched_tokens": 16, "cache": False}
    built = build_engine(EngineConfig(model=str(folder), device=device, **{**limits, **settings}))
    params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
    tokens: dict[str, list[int]] = {}
    for name, prompt in (("long", tuple(range(5, 23))), ("short", (9, 8, 7))):
        built.engine.add(Request(request_id=name, prompt_token_ids=prompt, params=params))
        tokens[name] = []
    while built.engine.has_work:
        for output in built.engine.step():
            assert output.error is None, output.error
            tokens[output.request_id].extend(output.token_ids)
    return list(tokens.values())
