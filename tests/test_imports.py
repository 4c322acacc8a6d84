"""Who may import whom: the method, the file and the pocket world know neither ComfyUI nor diffusers."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[1]
HOST_LIBRARIES = {"comfy", "comfy_api", "comfy_extras", "diffusers", "transformers"}


def core_files() -> list[Path]:
    """Every source file of training/, collection/ and pocket/, hosts left out."""
    files = [path for part in ("collection", "pocket", "training") for path in (ROOT / part).rglob("*.py")]
    return sorted(path for path in files if ROOT / "training" / "hosts" not in path.parents)


def dotted(path: Path) -> str:
    """Name of a file inside the package, e.g. ``training.losses``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def run_python(code: str, *arguments: str) -> str:
    """Run code in a fresh interpreter, away from the repository, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(sys.prefix),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_core_loads_no_host_library() -> None:
    code = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(f"collectionlora.{name}")
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
    # a script that trains a part of the pocket world is a program of its own and takes the host it needs
    scripts = ROOT / "pocket" / "train"
    names = [dotted(path) for path in core_files() if scripts not in path.parents]
    loaded = set(json.loads(run_python(code, *names)))
    assert not loaded & HOST_LIBRARIES


def test_the_package_never_imports_itself_by_name() -> None:
    """Under ComfyUI it has another. In a folder of that name ruff would take relative imports for it."""
    parts = ("bench", "collection", "nodes", "pocket", "training")
    files = [*ROOT.glob("*.py"), *(path for part in parts for path in (ROOT / part).rglob("*.py"))]
    assert len(files) > 100
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            assert not any(name.partition(".")[0] == "collectionlora" for name in names), path


@pytest.mark.parametrize("path", core_files(), ids=dotted)
def test_no_core_file_imports_a_host_library_even_late(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        found = {name.partition(".")[0] for name in names} & HOST_LIBRARIES
        assert not found, f"{path.relative_to(ROOT)}:{node.lineno} imports {', '.join(sorted(found))}"


def test_every_package_folder_is_installed() -> None:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(content["tool"]["setuptools"]["packages"])
    parts = ("bench", "collection", "nodes", "pocket", "training")
    folders = [path.parent for part in parts for path in (ROOT / part).rglob("__init__.py")]
    assert listed == {"collectionlora"} | {f"collectionlora.{dotted(folder)}" for folder in folders}


def test_importing_the_package_loads_no_torch() -> None:
    loaded = json.loads(run_python("import collectionlora, json, sys; print(json.dumps(list(sys.modules)))"))
    assert "torch" not in loaded
    assert "numpy" not in loaded


def test_the_core_imports_under_any_folder_name_without_being_installed() -> None:
    # ComfyUI imports a pack by path, under a name made of that path.
    code = """
import importlib, importlib.util, sys

class Refuse:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "collectionlora":
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Refuse)
root, *names = sys.argv[1:]
pack = "_x_custom_nodes_x_Collection LoRA-main"
spec = importlib.util.spec_from_file_location(pack, f"{root}/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[pack] = module
spec.loader.exec_module(module)
for name in names:
    importlib.import_module(f"{pack}.{name}")
"""
    run_python(code, str(ROOT), *map(dotted, core_files()))
