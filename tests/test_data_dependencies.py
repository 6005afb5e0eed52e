"""What the data package imports from elsewhere is declared, not left to come along with something else."""

import ast
import re
import sys
from pathlib import Path

import pytest

from osn_gs import data

tomllib = pytest.importorskip("tomllib", reason="reads pyproject.toml; in the standard library from Python 3.11")
SOURCES = Path(data.__file__).parent
DISTRIBUTION_OF = {"cv2": "opencv-python", "PIL": "pillow"}  # where the import has another name


def imported_packages() -> set[str]:
    """Top-level names that any module imports, at its top or inside functions; ours and Python's own left out."""
    names = set()
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"osn_gs"}


def test_every_import_is_declared():
    project = tomllib.loads((SOURCES.parents[1] / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w.-]+", requirement)[0] for requirement in project["dependencies"]}
    needed = {DISTRIBUTION_OF.get(name, name) for name in imported_packages()}
    assert needed >= {"numpy", "torch"}
    assert needed <= declared
