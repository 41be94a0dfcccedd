"""Every Triton kernel compiled for every arch, on a machine without any of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hal.cli.info.command import main
from hal.conform.compile_matrix import MatrixRequest, compile_matrix
from hal.errors import ConfigError
from hal.kernels import register_all
from hal.kernels.triton.program import is_installed
from hal.kernels.triton.verify.matrix import KERNEL, Compiled, read_floors
from hal.kernels.triton.verify.sites import all_sites
from hal.kernels.triton.verify.targets import DEFAULT_ARCHS
from hal.select import OPS

register_all()

needs_triton = pytest.mark.skipif(not is_installed(), reason="triton is not installed")
SITES = [str(site) for site in all_sites()]
Cells = dict[tuple[str, str], Compiled]


@pytest.fixture(scope="module")
def cells(request: pytest.FixtureRequest) -> Iterator[Cells]:
    """What this session asks for, compiled in other processes."""
    items = [item for item in request.session.items if hasattr(item, "callspec")]
    params = [item.callspec.params for item in items if "site" in item.callspec.params]
    ops = {str(p["site"]).partition(" ")[0] for p in params}
    archs = tuple(dict.fromkeys(str(p["arch"]) for p in params))
    found = compile_matrix(MatrixRequest(archs=archs, ops=tuple(ops)))
    yield {(cell.label, cell.arch): cell for cell in found}


@needs_triton
@pytest.mark.parametrize("arch", DEFAULT_ARCHS)
@pytest.mark.parametrize("site", SITES)
def test_machine_code_is_as_it_should_be(site: str, arch: str, cells: Cells) -> None:
    cell = cells[site, arch]
    if cell.rejected:
        pytest.skip(str(cell))
    assert not cell.faults, str(cell)


def test_every_kernel_is_compiled() -> None:
    ops = {op.name for op in OPS.values() if KERNEL in op.kernels}
    assert ops == {site.op for site in all_sites()}


def test_sites_have_names_of_their_own_and_floors() -> None:
    assert len(set(SITES)) == len(SITES)
    assert set(read_floors()) == set(SITES)


def test_an_arch_that_is_not_compiled_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="gfx1030"):
        list(compile_matrix(MatrixRequest(archs=("gfx1030",))))


@needs_triton
def test_an_op_without_triton_kernel_is_refused() -> None:
    with pytest.raises(ConfigError, match="no Triton kernel"):
        list(compile_matrix(MatrixRequest(archs=("sm_90",), ops=("store",))))


@needs_triton
def test_the_command_prints_a_row_for_each_site(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--targets", "gfx942,sm_90", "--op", "take_tokens"]) == 0
    out = capsys.readouterr().out
    assert "gfx942" in out and "take_tokens int32" in out


def test_the_command_refuses_an_empty_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--targets", "sm_90,,"]) == 2
    assert "empty name" in capsys.readouterr().err
