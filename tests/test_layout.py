"""The rules of the layout: who may import whom, twins, file lengths, tolerances in one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("parivox", "jax_impl", "torch_impl", "parity_tests")
JAX_ONLY = {"jax", "jaxlib", "flax", "optax", "chex", "orbax", "jax_impl"}
TORCH_ONLY = {"torch", "deepspeed", "torch_impl"}
MAX_LINES = 400

NO_TWIN = {
    "engine.py": "DeepSpeed's engine; JAX needs no such thing",
    "in_place.py": "an array of JAX never changes; its compiler reuses memory",
    "plan.py": "XLA compiles for devices that are not here; PyTorch does not",
}
"""Files of one backend alone, and why."""

NAMES_OF_ONE = {
    ("backend.py", "JaxBackend"): "the class is named after its framework; callers use create_backend",
    ("backend.py", "TorchBackend"): "the class is named after its framework; callers use create_backend",
    ("export.py", "OPSET"): "ONNX's; StableHLO has no such number",
    ("export.py", "PLATFORMS"): "what JAX lowers for; an ONNX file is of no platform",
    ("model/layers.py", "frames_first"): "torch's convolutions use all threads whichever axis is long",
    ("precision.py", "on_cpu"): "a tensor of torch tells its device itself",
    ("precision.py", "operands"): "torch's autocast rounds the operands of a convolution by itself",
    ("precision.py", "platform"): "an array of torch tells its device itself",
    ("precision.py", "spread"): "torch sums in a tree by itself",
    ("precision.py", "takes_products"): "torch's convolutions are as fast in a loop",
    ("precision.py", "total"): "torch sums in a tree by itself",
    ("sharding.py", "Mean"): "JAX's device meshes; DeepSpeed shards by its configuration",
    ("sharding.py", "data_parallel"): "JAX's device meshes; DeepSpeed shards by its configuration",
    ("sharding.py", "gradient_shardings"): "JAX's device meshes; DeepSpeed shards by its configuration",
    ("sharding.py", "make_mesh"): "JAX's device meshes; DeepSpeed shards by its configuration",
    ("sharding.py", "make_sharded_step"): "JAX's device meshes; DeepSpeed shards by its configuration",
    ("sharding.py", "one_device"): "JAX's device meshes; DeepSpeed shards by its configuration",
    ("sharding.py", "place"): "JAX's device meshes; DeepSpeed shards by its configuration",
    ("sharding.py", "shard_batch"): "JAX's device meshes; DeepSpeed shards by its configuration",
    ("sharding.py", "state_shardings"): "JAX's device meshes; DeepSpeed shards by its configuration",
    ("sharding.py", "engine_bytes"): "JAX's state is arrays already; DeepSpeed's sits in an engine",
    ("sharding.py", "put_arrays"): "JAX's state is arrays already; DeepSpeed's sits in an engine",
}
"""(file, public name) of one backend alone -> why."""

TOLERANCE_WORDS = {"rtol", "atol", "rel", "abs", "abs_tol", "rel_tol", "tol", "tolerance", "bound", "decimal"}
LARGEST_TOLERANCE = 1e-2
"""A positive literal up to this, compared with something, is taken for a tolerance."""


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(path: Path) -> set[str]:
    """Top-level names of everything a file imports, at any depth of its code."""
    names = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def forbidden_imports(root: Path) -> list[str]:
    rules = {"parivox": JAX_ONLY | TORCH_ONLY, "jax_impl": TORCH_ONLY, "torch_impl": JAX_ONLY}
    found = []
    for package, forbidden in rules.items():
        for path in sources(root / package):
            bad = imported(path) & forbidden
            found += [f"{path.relative_to(root)} imports {name}" for name in sorted(bad)]
    for path in sources(root / "torch_impl"):
        if path != root / "torch_impl/engine.py" and "deepspeed" in imported(path):
            found.append(f"{path.relative_to(root)} imports deepspeed")
    return found


def public_names(path: Path) -> tuple[list[str] | None, list[str]]:
    """`__all__` of a file (None without one) and the names it defines at its top level, in order."""
    declared, defined = None, []
    for node in parse(path).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.append(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and target.id == "__all__":
                declared = list(ast.literal_eval(node.value))
            elif isinstance(target, ast.Name):
                defined.append(target.id)
    return declared, defined


def unequal_twins(root: Path, names_of_one: dict[tuple[str, str], str] = NAMES_OF_ONE) -> list[str]:
    folders = root / "jax_impl", root / "torch_impl"
    files = [{str(path.relative_to(folder)) for path in sources(folder)} for folder in folders]
    found = [f"{name} has no twin" for name in sorted(files[0] ^ files[1]) if Path(name).name not in NO_TWIN]
    for name in sorted(files[0] & files[1]):
        lists = []
        for folder in folders:
            declared, defined = public_names(folder / name)
            if declared is None and defined:
                found.append(f"{folder.name}/{name} has no __all__")
            public = [one for one in declared or () if (name, one) not in names_of_one]
            # Defined names in the order of reading, then re-exported ones, whose imports a linter sorts.
            lists.append(sorted(public, key=lambda one: (defined + public).index(one)))
        if lists[0] != lists[1]:
            found.append(f"{name}: jax_impl has {lists[0]}, torch_impl has {lists[1]}")
    return found


def long_files(root: Path) -> list[str]:
    folders = (*PACKAGES, "tests", "benchmarks")
    counts = {path: len(path.read_text("utf-8").splitlines()) for f in folders for path in sources(root / f)}
    return [
        f"{path.relative_to(root)} has {count} lines" for path, count in counts.items() if count > MAX_LINES
    ]


def is_tolerance(node: ast.AST | None) -> bool:
    value = getattr(node, "value", None) if isinstance(node, ast.Constant) else None
    return isinstance(value, float) and 0 < value <= LARGEST_TOLERANCE


def tolerance_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Literals passed as a tolerance, compared with something, or given to a row as its bound."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in TOLERANCE_WORDS:
            value = node.value
            # 0 and 0.0 ask for equality and True is a switch; neither is a tolerance.
            if (
                isinstance(value, ast.Constant)
                and isinstance(value.value, int | float)
                and value.value not in (0, 1)
            ):
                yield node.value
        elif isinstance(node, ast.Compare):
            yield from (side for side in (node.left, *node.comparators) if is_tolerance(side))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Row":
            yield from (argument for argument in node.args[4:5] if is_tolerance(argument))


def literal_tolerances(root: Path) -> list[str]:
    found = []
    for path in sources(root / "parity_tests"):
        if path.name != "tolerances.py":
            lines = sorted({node.lineno for node in tolerance_nodes(parse(path))})
            found += [f"{path.relative_to(root)}:{line} has a literal tolerance" for line in lines]
    return found


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def import_all(package: str, absent: set[str], skip: str = "") -> subprocess.CompletedProcess[str]:
    """Import every module of a package in a new process where some packages are absent."""
    return run_python(f"""
import importlib, pkgutil, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted(absent)!r}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)
sys.meta_path.insert(0, Absent())
import {package}
names = [module.name for module in pkgutil.walk_packages({package}.__path__, "{package}.")]
for name in names:
    if name != {skip!r}:
        importlib.import_module(name)
print(len(names))
""")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_have_sources(package):
    assert len(sources(ROOT / package)) > 1


def test_nobody_imports_what_is_not_theirs():
    assert forbidden_imports(ROOT) == []


def test_every_twin_has_the_same_public_names_in_the_same_order():
    assert unequal_twins(ROOT) == []


def test_exceptions_are_in_use():
    there = {path.name for f in ("jax_impl", "torch_impl") for path in sources(ROOT / f)}
    assert "engine.py" in there
    declared = [
        (str(path.relative_to(ROOT / folder)), name)
        for folder in ("jax_impl", "torch_impl")
        for path in sources(ROOT / folder)
        for name in public_names(path)[0] or ()
    ]
    assert all(declared.count(exception) == 1 for exception in NAMES_OF_ONE)


def test_no_file_is_too_long():
    assert long_files(ROOT) == []


def test_tolerances_are_in_one_place():
    assert (ROOT / "parity_tests/tolerances.py").is_file()
    assert literal_tolerances(ROOT) == []


def test_parivox_works_without_any_framework():
    done = import_all("parivox", absent=(JAX_ONLY | TORCH_ONLY))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


@pytest.mark.parametrize(
    ("package", "others", "skip"),
    [("jax_impl", TORCH_ONLY, ""), ("torch_impl", JAX_ONLY | {"deepspeed"}, "torch_impl.engine")],
)
def test_a_backend_works_where_the_other_is_not_installed(package, others, skip):
    done = import_all(package, absent=others, skip=skip)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5


@pytest.mark.parametrize(
    ("package", "others"), [("jax_impl", TORCH_ONLY), ("torch_impl", (JAX_ONLY - {"jaxlib"}) | {"deepspeed"})]
)
def test_a_backend_does_not_import_the_other_where_both_are_installed(package, others):
    done = run_python(f"import sys, {package}.backend\nprint(*set(sys.modules) & {others!r})")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_planted_imports_are_found(tmp_path):
    plant(
        tmp_path,
        {
            "parivox/a.py": "def f():\n    import torch.nn\n",
            "jax_impl/a.py": "from torch_impl.features import stft\nimport jax\n",
            "torch_impl/a.py": "import jax.numpy as jnp\n",
            "torch_impl/b.py": "from deepspeed import initialize\n",
            "torch_impl/engine.py": "import deepspeed\n",
        },
    )
    assert forbidden_imports(tmp_path) == [
        "parivox/a.py imports torch",
        "jax_impl/a.py imports torch_impl",
        "torch_impl/a.py imports jax",
        "torch_impl/b.py imports deepspeed",
    ]


def test_planted_twin_differences_are_found(tmp_path):
    pair = {
        f"{package}/same.py": '__all__ = ["f", "A"]\ndef f(): ...\nclass A: ...\n'
        for package in PACKAGES[1:3]
    }
    plant(tmp_path, pair)
    assert unequal_twins(tmp_path) == []
    plant(
        tmp_path,
        {
            "jax_impl/alone.py": "",
            "torch_impl/sub/engine.py": "",
            "jax_impl/order.py": '__all__ = ["A", "f"]\ndef f(): ...\nclass A: ...\n',
            "torch_impl/order.py": '__all__ = ["A", "f"]\nclass A: ...\ndef f(): ...\n',
            "jax_impl/more.py": '__all__ = ["f", "g"]\ndef f(): ...\ndef g(): ...\n',
            "torch_impl/more.py": '__all__ = ["f"]\ndef f(): ...\ndef g(): ...\n',
            "jax_impl/undeclared.py": "SIZE: int = 3\n",
            "torch_impl/undeclared.py": '"""Only words."""\n',
        },
    )
    assert unequal_twins(tmp_path) == [
        "alone.py has no twin",
        "more.py: jax_impl has ['f', 'g'], torch_impl has ['f']",
        "order.py: jax_impl has ['f', 'A'], torch_impl has ['A', 'f']",
        "jax_impl/undeclared.py has no __all__",
    ]
    excepted = {("order.py", "f"): "a reason"}
    assert len(unequal_twins(tmp_path, excepted)) == 3


def test_planted_long_file_is_found(tmp_path):
    plant(tmp_path, {"tests/short.py": "\n" * MAX_LINES, "parivox/long.py": "\n" * (MAX_LINES + 1)})
    assert long_files(tmp_path) == [f"parivox/long.py has {MAX_LINES + 1} lines"]


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("assert error < 1e-6", True),
        ("np.testing.assert_allclose(a, b, rtol=1e-5)", True),
        ("np.testing.assert_allclose(a, b, atol=2)", True),
        ("Row('r', 'c', 'a', error, 1e-5)", True),
        ("Row('r', 'c', 'a', error, bound=1e-5)", True),
        ("Row('r', 'c', 'a', error, bound('r'))", False),
        ("Row('r', 'c', 'a', error, 0)", False),
        ("assert error <= bound('r', 'float32')", False),
        ("GroupNorm(dim, eps=1e-6)", False),
        ("assert step > 100", False),
    ],
)
def test_planted_tolerances_are_found(tmp_path, code, found):
    plant(tmp_path, {"parity_tests/rungs_a.py": code, "parity_tests/tolerances.py": "assert error < 1e-6"})
    assert bool(literal_tolerances(tmp_path)) == found
