"""The repository keeps its layers apart, and each rule of scripts/check_layout.py can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import check_layout as layout
import pytest

ROOT = Path(__file__).resolve().parent.parent
KNOWN = frozenset({"hal", "hal.build", "hal.device", "hal.engine", "hal.engine.engine"})


def module(name: str, source: str = "") -> layout.Module:
    path = Path(name.replace(".", "/") + ".py")
    return layout.Module(name, path, source)


def test_the_checkout_has_no_violation() -> None:
    assert layout.violations(ROOT) == []


def test_every_package_is_read_once() -> None:
    modules = layout.read_modules(ROOT)
    names = [m.name for m in modules]
    assert len(names) == len(set(names))
    assert {"hal", "hal.devices", "hal.engine", "hal.kernels", "hal.server"} <= set(names)
    assert {layout.layer_of(m.name) for m in modules} >= {"hal", *layout.PACKAGES}


@pytest.mark.parametrize("name", layout.PACKAGES)
def test_packages_are_relative_links(name: str) -> None:
    link = ROOT / "hal" / name
    assert link.is_symlink(), f"hal/{name} must be a link to ../{name}"
    assert link.readlink() == Path("..") / name


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("hal.server.app", "from hal.kernels import cpu"),
        ("hal.server.app", "import hal.devices.cpu"),
        ("hal.server.app", "from hal.build import build"),
        ("hal.server.app", "import torch"),
        ("hal.server.app", "def f():\n    from torch import nn"),
        ("hal.engine.engine", "from hal.server import app"),
        ("hal.engine.engine", "from ..kernels import reference"),
        ("hal.engine.models.llama", "from ...devices.cpu import CpuDevice"),
        ("hal.engine.engine", "if TYPE_CHECKING:\n    from hal.devices.cpu import CpuDevice"),
        ("hal.engine.engine", "try:\n    pass\nexcept ImportError:\n    import hal.kernels.cpu"),
        ("hal.engine.engine", "x = importlib.import_module('hal.kernels.cpu')"),
        ("hal.kernels.cpu.linear", "from hal.engine.batch import Batch"),
        ("hal.kernels.cpu.linear", "from hal.devices import cpu"),
        ("hal.devices.cpu", "from hal.kernels import cpu"),
        ("hal.memory", "from hal.engine import engine"),
        ("hal.memory", "from hal.build import build"),
        ("hal.memory", "from hal import build"),
        ("hal.conformance.cases", "import hal.kernels.reference"),
        ("hal", "from hal.engine.engine import Engine"),
        ("hal.device", "import tests.conftest"),
        ("hal.engine.engine", "from engine.batch import Batch"),
        ("hal.build", "import kernels"),
    ],
)
def test_a_wrong_arrow_is_found(name: str, source: str) -> None:
    assert list(layout.arrow_violations(module(name, source), KNOWN))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("hal.server.app", "from hal.engine.engine import Engine\nfrom hal import errors"),
        ("hal.engine.models.llama", "from ..layers import norm\nfrom hal.opset import norm"),
        ("hal.kernels.cpu.linear", "import torch\nfrom hal.select import kernel"),
        ("hal.build", "from hal.devices import probe\nfrom hal.kernels import cpu"),
        ("hal.cli.serve", "from hal.server.app import app"),
        ("hal", "def __getattr__(name):\n    from hal.llm import LLM"),
        ("hal.memory", "import enginelib"),
    ],
)
def test_a_right_arrow_is_not(name: str, source: str) -> None:
    assert list(layout.arrow_violations(module(name, source), KNOWN)) == []


def test_a_cycle_is_found() -> None:
    one = module("hal.one", "from hal.two import x")
    two = module("hal.two", "if True:\n    from hal import three")
    three = module("hal.three", "class A:\n    import hal.one")
    assert list(layout.cycle_violation([one, two])) == []
    (message,) = layout.cycle_violation([one, two, three])
    assert all(name in message for name in ("hal.one", "hal.two", "hal.three"))


def test_late_and_typing_imports_are_no_cycle() -> None:
    one = module("hal.one", "from hal.two import x")
    late = module("hal.two", "def f():\n    import hal.one")
    typing = module("hal.two", "if TYPE_CHECKING:\n    import hal.one")
    assert list(layout.cycle_violation([one, late])) == []
    assert list(layout.cycle_violation([one, typing])) == []


@pytest.mark.parametrize(
    "text",
    ["cuda", "is_cuda", "CudaGraph", "NCCL_DEBUG", "hip", "useHip", "AMD", "gfx942", "sm_90"]
    + ["mi300x", "intel", "hipblaslt", "nvidia-smi", "Radeon", "H100"],
)
def test_a_vendor_word_is_found(text: str) -> None:
    assert layout.vendor_words(f"x = {text}  # why")


@pytest.mark.parametrize("text", ["ship", "relationship", "amdahl", "small", "chip", "intelligent"])
def test_an_ordinary_word_is_not_a_vendor(text: str) -> None:
    assert layout.vendor_words(text) == []


def test_vendor_words_are_refused_where_they_do_not_belong() -> None:
    comment = "x = 1  # as cuda does"
    assert list(layout.vendor_violations(module("hal.engine.engine", comment)))
    assert list(layout.vendor_violations(module("hal.server.app", "x = 'nvidia'")))
    assert list(layout.vendor_violations(module("hal.memory", "def use_hip(): ...")))
    assert list(layout.vendor_violations(module("hal.build", "cuda_device = 1")))


def test_vendor_words_are_allowed_where_they_do() -> None:
    for name in ("hal.profiles", "hal.profiles_data", "hal.devices.cuda", "hal.kernels.cuda.gemm"):
        assert list(layout.vendor_violations(module(name, "cuda = 1"))) == []
    text = '"""Runs on cuda."""\nhelp = "cuda:0"  # or hip\n'
    assert list(layout.vendor_violations(module("hal.cli.serve", text))) == []


@pytest.mark.parametrize(
    "source",
    [
        "y = a @ b",
        "y @= b",
        "y = torch.matmul(a, b)",
        "y = a.bmm(b)",
        "y = torch.nn.functional.silu(a)",
        "import torch.nn.functional as F",
        "from torch.nn import functional",
        "def f():\n    from torch import nn",
    ],
)
def test_tensor_math_in_the_engine_is_found(source: str) -> None:
    assert list(layout.tensor_math_violations(module("hal.engine.layers.mlp", source)))
    assert list(layout.tensor_math_violations(module("hal.kernels.cpu.mlp", source))) == []


def test_calling_ops_in_the_engine_is_fine() -> None:
    source = "@dataclass\nclass A:\n    def f(self):\n        self.ops.linear(x, out)"
    assert list(layout.tensor_math_violations(module("hal.engine.layers.mlp", source))) == []


@pytest.mark.parametrize("path", ["hal/utils.py", "engine/common/batch.py", "server/helpers.py"])
def test_a_vague_name_is_found(path: str) -> None:
    assert list(layout.name_violations(Path(path)))
    assert list(layout.name_violations(Path("engine/utilities_of_block.py"))) == []


def loaded_after(statement: str, *names: str) -> set[str]:
    """Which of `names` a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint(*[n for n in {names!r} if n in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


HEAVY = ("torch", "numpy", "transformers", "triton", "cupy", "pyopencl", "fastapi", "pydantic")


def test_importing_hal_is_light() -> None:
    assert loaded_after("import hal", *HEAVY) == set()
    assert loaded_after("import hal, json", "json") == {"json"}


def test_the_server_loads_without_torch() -> None:
    pytest.importorskip("fastapi")
    names = [m.name for m in layout.read_modules(ROOT) if layout.layer_of(m.name) == "server"]
    statement = "import " + ", ".join(n for n in names if not n.endswith("__main__"))
    assert loaded_after(statement, "torch") == set()
