"""Numba's cache of a kernel is keyed by the kernel's own file: what it takes from another file would go stale there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import osn_gs

KERNEL_FILES = sorted(
    path for path in Path(osn_gs.__file__).parent.rglob("*.py") if "cache=True" in path.read_text(encoding="utf-8")
)


def names_read(node: ast.AST) -> set[str]:
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Load)}


def names_from_other_files(module: ast.Module) -> set[str]:
    """What the module imports from this package, and its own constants that are made from that."""
    foreign: set[str] = set()
    for statement in module.body:
        if isinstance(statement, ast.ImportFrom) and statement.module.startswith("osn_gs"):
            foreign |= {alias.asname or alias.name for alias in statement.names}
        elif isinstance(statement, ast.Assign) and names_read(statement.value) & foreign:
            foreign |= {
                name.id for target in statement.targets for name in ast.walk(target) if isinstance(name, ast.Name)
            }
    return foreign


def is_kernel(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.FunctionDef) and any("njit" in names_read(d) for d in statement.decorator_list)


def stale_names(source: str) -> dict[str, set[str]]:
    """For each kernel of a file, the names that its cached code would keep when another file changes."""
    module = ast.parse(source)
    foreign = names_from_other_files(module)
    kernels = [statement for statement in module.body if is_kernel(statement)]
    return {kernel.name: names_read(kernel) & foreign for kernel in kernels if names_read(kernel) & foreign}


@pytest.mark.parametrize("path", KERNEL_FILES, ids=lambda path: path.name)
def test_kernels_take_nothing_from_other_files_but_arguments(path: Path) -> None:
    assert stale_names(path.read_text(encoding="utf-8")) == {}


def test_a_constant_of_another_file_would_be_found() -> None:
    source = """
from osn_gs.rendering.projected_gaussians import ALPHA_MIN
FAINTEST, ONE = float32(ALPHA_MIN), float32(1)

@njit(cache=True)
def blend(alpha):
    return alpha < FAINTEST

def run(alpha):
    return blend(alpha) and alpha < ALPHA_MIN
"""
    assert stale_names(source) == {"blend": {"FAINTEST"}}
