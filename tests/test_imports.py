"""Low packages know nothing of high ones, and importing any of them does nothing else."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import osn_gs

PACKAGE = Path(osn_gs.__file__).parent

# From low to high: a package imports itself and those in the lines above, not its neighbours in the same line.
LAYERS = (
    {"errors"},
    {"files", "threads", "geometry", "image_similarity", "config"},
    {"gaussians"},
    {"rendering"},
    {"scene"},
    {"object_scales"},
    {"data"},
    {"preprocess", "training"},
    {"evaluation", "export"},
    {"viewer"},
    {"run"},
    {"benchmarks"},
)


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def height_of(package: str) -> int:
    for height, packages in enumerate(LAYERS):
        if package in packages:
            return height
    raise AssertionError(f"osn_gs.{package} has no place in LAYERS of {Path(__file__).name}; give it one")


def imported_modules(source: str) -> list[str]:
    """Full names of everything a source imports, at its top or inside functions."""
    modules = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute: from osn_gs.package.module import name"
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
    return modules


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def upward_imports(package: str, source: str) -> list[str]:
    wrong = []
    for module in imported_modules(source):
        top, _, rest = module.partition(".")
        if top == "tools":
            wrong.append(module)
        elif top == "osn_gs":
            other = rest.split(".")[0]
            if other != package and height_of(other) >= height_of(package):
                wrong.append(module)
    return wrong


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    assert upward_imports(package_of(path), path.read_text()) == []


def test_an_import_that_points_up_would_be_found():
    hidden = "def place():\n    from osn_gs.training.losses import l1\n"
    assert upward_imports("geometry", hidden) == ["osn_gs.training.losses.l1"]
    assert upward_imports("evaluation", "from osn_gs import export") == ["osn_gs.export"]
    assert upward_imports("run", "import tools.train") == ["tools.train"]
    assert upward_imports("training", "from osn_gs.geometry.se3 import invert_rigid") == []


IMPORT_EVERYTHING = """
import json, random, subprocess, sys
import numpy, torch
import rich.style  # not ours: draws an id from Python's generator when it is first imported

def state():
    return {
        "torch seed": torch.initial_seed(),
        "torch random state": torch.get_rng_state().tolist(),
        "numpy random state": str(numpy.random.get_state()),
        "python random state": hash(random.getstate()),
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "threads": torch.get_num_threads(),
        "gradients enabled": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }

def refuse(*arguments, **options):
    raise AssertionError(f"importing started a process: {arguments}")

before = state()
subprocess.Popen.__init__ = refuse
missing = {}
for name in json.loads(sys.argv[1]):
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        missing[name] = error.name
after = state()
print(json.dumps({
    "changed": [key for key in before if before[key] != after[key]],
    "missing": missing,
    "cuda initialized": torch.cuda.is_initialized(),
    "extensions": [name for name in sys.modules if name in ("gsplat.csrc", "gsplat.cuda._backend")],
}))
"""


def test_importing_every_module_does_nothing_else(tmp_path):
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in [PACKAGE / "__init__.py", *sources()]
    ]
    caches = {name: tmp_path / name for name in ("TORCH_EXTENSIONS_DIR", "NUMBA_CACHE_DIR")}
    finished = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING, json.dumps(modules)],
        env={**os.environ, **{name: str(folder) for name, folder in caches.items()}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout)
    assert report["changed"] == []
    assert not report["cuda initialized"]
    assert report["extensions"] == []
    assert report["missing"] == {}
    compiled = [path for folder in caches.values() for path in folder.rglob("*") if path.is_file()]
    assert compiled == [], "importing compiled something"
