"""Finds what breaks the layout: import arrows, cycles, vendor words, tensor math, file names.

The rules and their reasons: docs/adr/0001-layout.md. Prints one line per violation and exits
with 1 when there is any. Every rule is a function of source text, so that tests/test_layout.py
can plant a violation of each.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGES = ("devices", "engine", "kernels", "server")  # reached as hal.<name> through links
COMPOSITION_ROOT = (
    "hal.assembly",
    "hal.build",
    "hal.conform",  # runs the engine's models for hal.conformance, which knows no engine
    "hal.llm",
    "hal.async_llm",
    "hal.cli",
    "hal.ranks",  # starts an engine's other ranks, which build what it builds
    "hal.planning",  # sums what start-up sums: devices, kernels and models, nothing allocated
)  # the only modules that wire the layers

# What each layer may import. "root" is the composition root; hal/__init__ exports from it lazily.
ALLOWED_ARROWS = {
    "hal": {"hal"},
    "hal.__init__": {"hal", "root"},
    "engine": {"engine", "hal"},
    "server": {"server", "engine", "hal"},
    "kernels": {"kernels", "hal"},
    "devices": {"devices", "hal"},
    "root": {"root", "hal", "engine", "devices", "kernels", "server"},
}

# Found inside any identifier or word: cudaGraph, NCCL_DEBUG, hipblaslt.
VENDOR_SUBSTRINGS = (
    *("cuda", "cublas", "cudnn", "cutlass", "nvidia", "nvml", "nccl", "nvrtc", "tensorrt"),
    *("rocm", "rccl", "hipblas", "hiprtc", "miopen", "radeon", "amdgpu", "geforce"),
)
# Short or ordinary letters: only as a whole part of a name, as in is_hip or ship_hip.
VENDOR_PARTS = re.compile(
    r"hip|amd|intel|xpu|cdna\d?|rdna\d?|gfx\d\w*|sm\d\d+|mi\d{3}x?|[avh]100|h200"
)

TENSOR_MATH = {"matmul", "mm", "bmm", "addmm", "baddbmm", "mv", "einsum", "tensordot"}
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


@dataclass(frozen=True, slots=True)
class Module:
    """One source file: its dotted import name ("hal.engine.request"), path and text."""

    name: str
    path: Path
    source: str

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, filename=str(self.path))


@dataclass(frozen=True, slots=True)
class Import:
    """An import of `target`; `is_eager` when it runs as soon as the importing module loads."""

    target: str
    line: int
    is_eager: bool


def layer_of(module: str) -> str:
    """The layer of a dotted name: a key of ALLOWED_ARROWS, or "" outside hal."""
    parts = module.split(".")
    if parts[0] != "hal":
        return ""
    if len(parts) > 1 and parts[1] in PACKAGES:
        return parts[1]
    is_root = any(module == root or module.startswith(root + ".") for root in COMPOSITION_ROOT)
    return "root" if is_root else "hal"


def imports_of(module: Module, known: frozenset[str]) -> Iterator[Import]:
    """Every import in the file, relative ones resolved; `known` tells submodules from names."""
    yield from _imports_in(module.tree.body, module, known, is_eager=True)


def _imports_in(
    nodes: list[ast.stmt], module: Module, known: frozenset[str], is_eager: bool
) -> Iterator[Import]:
    for node in nodes:
        for target in dict.fromkeys(_targets(node, module, known)):
            yield Import(target, node.lineno, is_eager)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imports_in(node.body, module, known, is_eager=False)
            yield from _imports_in(node.orelse, module, known, is_eager)
            continue
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for body in _bodies(node):
            yield from _imports_in(body, module, known, is_eager and not is_function)


def _bodies(node: ast.stmt) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        yield getattr(node, name, [])
    for part in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
        yield part.body


def _targets(node: ast.stmt, module: Module, known: frozenset[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = module.name.split(".")
            keep = len(package) - node.level + (1 if module.is_package else 0)
            base = ".".join([*package[:keep], *([base] if base else [])])
        for alias in node.names:
            submodule = f"{base}.{alias.name}"
            yield submodule if submodule in known else base
    elif not hasattr(node, "body"):
        yield from _dynamic_targets(node)


def _dynamic_targets(node: ast.stmt) -> Iterator[str]:
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant):
            name = ast.unparse(call.func).rpartition(".")[2]
            if name in {"import_module", "__import__"} and isinstance(call.args[0].value, str):
                yield call.args[0].value


def arrow_violations(module: Module, known: frozenset[str]) -> Iterator[str]:
    """Imports against the arrows `server -> engine -> hal <- kernels, devices`."""
    layer = "hal.__init__" if module.name == "hal" else layer_of(module.name)
    for imported in imports_of(module, known):
        where = f"{module.path}:{imported.line}"
        top = imported.target.partition(".")[0]
        if top in PACKAGES:
            yield f"{where}: imports {imported.target}; write hal.{imported.target}"
        elif top == "tests" and layer:
            yield f"{where}: imports {imported.target}; nothing imports tests"
        elif layer == "server" and top == "torch":
            yield f"{where}: server imports torch; the server never touches a tensor"
        target = layer_of(imported.target)
        if layer and target and target not in ALLOWED_ARROWS[layer]:
            allowed = ", ".join(sorted(ALLOWED_ARROWS[layer]))
            yield f"{where}: {layer} imports {imported.target} ({target}); allowed: {allowed}"


def cycle_violation(modules: list[Module]) -> Iterator[str]:
    """The first cycle among imports that run when modules load, if there is one."""
    known = frozenset(m.name for m in modules)
    graph = {
        m.name: {i.target for i in imports_of(m, known) if i.is_eager and i.target in known}
        - {m.name}
        for m in modules
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield "import cycle: " + " <- ".join(error.args[1])


def vendor_words(text: str) -> list[str]:
    """The words in `text` that name a vendor or its software, in any case and any style."""
    found = []
    for word in re.findall(r"[A-Za-z][A-Za-z0-9_]*", text):
        snake = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", word).lower()
        parts = re.sub(r"\bsm_(?=\d)", "sm", snake).split("_")
        is_vendor = any(VENDOR_PARTS.fullmatch(part) for part in parts)
        if is_vendor or any(vendor in word.lower() for vendor in VENDOR_SUBSTRINGS):
            found.append(word)
    return found


def vendor_violations(module: Module) -> Iterator[str]:
    """Vendor words: anywhere in engine/ and server/, in identifiers of hal/ (but profiles)."""
    layer = layer_of(module.name)
    if layer in {"engine", "server"}:
        lines: Iterator[tuple[int, str]] = iter(enumerate(module.source.splitlines(), 1))
    elif layer in {"hal", "root"} and not module.name.startswith("hal.profiles"):
        tokens = tokenize.generate_tokens(io.StringIO(module.source).readline)
        lines = ((t.start[0], t.string) for t in tokens if t.type == tokenize.NAME)
    else:
        return
    for number, text in lines:
        for word in vendor_words(text):
            yield f"{module.path}:{number}: vendor word {word!r} in {layer}"


def tensor_math_violations(module: Module) -> Iterator[str]:
    """Tensor math in engine/ that is not an op."""
    if layer_of(module.name) != "engine":
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.MatMult):
            yield f"{module.path}:{node.lineno}: engine multiplies matrices; call an op"
        elif isinstance(node, ast.Attribute) and node.attr in TENSOR_MATH:
            yield f"{module.path}:{node.lineno}: engine calls .{node.attr}; call an op"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.nn":
            yield f"{module.path}:{node.lineno}: engine uses torch.nn; call an op"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for target in _targets(node, module, frozenset()):
                if target.startswith("torch.nn") or "import nn" in ast.unparse(node):
                    yield f"{module.path}:{node.lineno}: engine imports {target}; call an op"


def name_violations(path: Path) -> Iterator[str]:
    """A file or folder whose name says nothing."""
    if VAGUE_NAMES & {path.stem, *path.parts[:-1]}:
        yield f"{path}: a name that says what is inside, please"


def read_modules(root: Path) -> list[Module]:
    """Every Python file of hal and the packages linked into it; paths relative to `root`."""
    modules = []
    for top in ("hal", *PACKAGES):
        for path in sorted((root / top).rglob("*.py")):
            relative = path.relative_to(root)
            if top == "hal" and len(relative.parts) > 2 and relative.parts[1] in PACKAGES:
                continue  # the same file through its link
            dotted = relative.with_suffix("").parts
            dotted = dotted[:-1] if dotted[-1] == "__init__" else dotted
            name = ".".join(dotted if top == "hal" else ("hal", *dotted))
            modules.append(Module(name, relative, path.read_text(encoding="utf-8")))
    return modules


def violations(root: Path) -> list[str]:
    """All of them, for the checkout at `root`."""
    modules = read_modules(root)
    known = frozenset(m.name for m in modules)
    found = list(cycle_violation(modules))
    for module in modules:
        found += arrow_violations(module, known)
        found += vendor_violations(module)
        found += tensor_math_violations(module)
        found += name_violations(module.path)
    for top in ("tests", "scripts", "tools", "benchmarks"):
        for path in sorted((root / top).rglob("*.py")):
            found += name_violations(path.relative_to(root))
    return found


def main() -> int:
    found = violations(Path(__file__).resolve().parent.parent)
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
