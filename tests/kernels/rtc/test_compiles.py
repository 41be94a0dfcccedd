"""src/ compiled for archs that are not here, by the compilers that users run or their like."""

from __future__ import annotations

from dataclasses import replace

import pytest
from evidence import compiled_rows

from hal.cli.info.command import main
from hal.cli.info.verify import render
from hal.errors import UnsupportedError
from hal.kernels import register_all
from hal.kernels.rtc.arch import Target
from hal.kernels.rtc.cupy_runtime import compile_source
from hal.kernels.rtc.program import Source
from hal.kernels.rtc.verify import Missing, Variant, compile_variant, compiler_of, variants
from hal.kernels.triton.verify.matrix import Compiled
from hal.profiles import find_profile

register_all()

# Archs with instructions of their own (a) contain those of all of their family.
ARCHS = {"sm_80": "sm_80", "sm_90a": "sm_90", "sm_100a": "sm_100"}
ARCHS |= {arch: arch for arch in ("gfx90a", "gfx942", "gfx1100", "gfx1201")}
VARIANTS = variants()[::3]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    "variant", VARIANTS, ids=lambda variant: f"{variant.kernel}-{variant.name}"
)
def test_machine_code_is_as_it_should_be(variant: Variant, arch: str) -> None:
    caps = replace(find_profile(ARCHS[arch]).capabilities(), arch=arch)
    cell = compile_variant(variant, caps)
    if cell.missing:
        pytest.skip(cell.missing)
    assert not cell.faults and not cell.rejected, str(cell)
    assert cell.programs and cell.waves > 0


def needs_nvrtc() -> None:
    found = compiler_of(Target("nvidia", "sm_90"))
    if isinstance(found, Missing):
        pytest.skip(found.reason)


def test_a_fault_of_the_source_is_told() -> None:
    needs_nvrtc()
    source = Source(
        "int4_linear.cpp", Target("nvidia", "sm_90"), frozenset({("BFLOAT16", 1), ("GROUP", 0)})
    )
    with pytest.raises(UnsupportedError, match=r"int4_linear.cpp for sm_90 .*HAL_GROUP=0") as told:
        compile_source(source)
    assert "int4_linear.cpp(" in str(told.value)  # the line


def test_an_arch_that_the_compiler_does_not_know_is_told() -> None:
    needs_nvrtc()
    (variant, *_) = variants()
    source = replace(variant.source(Target("nvidia", "sm_90")), target=Target("nvidia", "sm_99"))
    with pytest.raises(UnsupportedError, match="sm_99"):
        compile_source(source)


def test_the_table_tells_compilers_and_what_is_missing() -> None:
    fine = Compiled(op="linear", kernel="k", site="k a", arch="sm_90", waves=4, compiler="NVRTC 13")
    text = render([fine, replace(fine, arch="gfx942", missing="no clang")], ["sm_90", "gfx942"])
    assert "linear k a  4      ?" in text
    assert "k by NVRTC 13: sm_90" in text and "not compiled: gfx942: no clang" in text


def test_the_command_compiles_these_kernels(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_nvrtc()
    monkeypatch.setattr("hal.conform.compile_matrix.compile_matrix", lambda request: [])
    monkeypatch.setattr("hal.kernels.rtc.verify.variants", lambda: variants()[:1])
    assert main(["verify", "--targets", "sm_90", "--op", "linear"]) == 0
    out = capsys.readouterr().out
    assert "mma_int4 by NVRTC" in out and "linear mma_int4 int4-a16-bfloat16" in out


def test_evidence_is_of_the_compiler_that_users_run() -> None:
    needs_nvrtc()
    nvrtc = compiler_of(Target("nvidia", "sm_90"))
    assert not isinstance(nvrtc, Missing)
    fine = Compiled(op="linear", kernel="gemv", site="gemv a", arch="sm_90", compiler=nvrtc.name)
    clang = replace(fine, arch="gfx942", compiler="clang 19")
    missing = replace(fine, arch="sm_80", missing="no compiler")
    (row,) = compiled_rows([fine, clang, missing])
    assert (row.kernel, row.arch, row.compiler) == ("gemv", "sm_90", nvrtc.name)
