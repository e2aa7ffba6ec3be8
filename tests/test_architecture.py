"""The house: which room may look at which, what each loads, how long a module may be."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sampdetox_transforms

PACKAGE = Path(sampdetox_transforms.__file__).parent
NAME = PACKAGE.name
SOURCES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
# A public name and the module that it is imported from when it is first used.
PUBLIC = {name: module for module, names in sampdetox_transforms._MODULES.items() for name in names}
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}

# A room and the rooms that it may import; each may import itself.
ALLOWED = {
    "_common": set(),
    "method": {"_common"},
    "networks": {"_common", "method"},
    "transforms": {"_common", "method", "networks"},
    "integrations": {"transforms"},
    "training": {"_common", "method", "networks"},
    "lab": {"_common", "method", "networks", "transforms", "training"},
    "cli": {"_common", "method", "networks", "transforms", "training", "lab"},
    "__main__": {"cli"},
    "__init__": {"method", "networks", "transforms"},
}
METHOD_IMPORTS = {"torch", "jaxtyping", NAME} | sys.stdlib_module_names
LONGEST = 300

# What is not yet as it should be. These only shrink: a test fails when one is no longer needed.
WRONG_WAY = set()
FOREIGN_TO_METHOD = {("method/windows.py", "pytorch_msssim")}  # stays: its filter is the one that was asked for
TOO_LONG = set()


def room_of(name: str) -> str:
    """``method/noise.py`` lies in ``method``, ``_common.py`` in ``_common``."""
    return name.split("/")[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    """Every module that a source imports, anywhere in it; a name of a package is written as its module."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"imports name the whole path, got a relative one: {ast.unparse(node)}"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_modules(tree: ast.AST) -> set[str]:
    """The sources of this package that a source imports."""
    found = set()
    for name in imported(tree):
        parts = name.split(".")
        if parts[0] != NAME:
            continue
        if len(parts) == 2 and parts[1] in PUBLIC:
            parts = [NAME, *PUBLIC[parts[1]].split(".")]
        for end in (len(parts), len(parts) - 1):
            path = "/".join(parts[1:end])
            own = next((p for p in (f"{path}.py", f"{path}/__init__.py", "__init__.py") if p in SOURCES), "__init__.py")
            if own != "__init__.py":
                break
        found.add(own)
    return found


def test_the_folder_lists_ten_names_and_the_mark_of_types():
    names = {path.name for path in PACKAGE.iterdir()} - {"__pycache__"}
    rooms = {"method", "networks", "transforms", "integrations", "training", "lab", "cli"}
    assert names == {"__init__.py", "__main__.py", "_common.py", "py.typed", *rooms}
    assert all((PACKAGE / room / "__init__.py").exists() for room in rooms)


def test_every_import_goes_the_right_way():
    wrong = {
        (name, room_of(own))
        for name, tree in TREES.items()
        for own in own_modules(tree)
        if room_of(own) not in ALLOWED[room_of(name)] | {room_of(name), "__init__"}
    }
    assert wrong == WRONG_WAY


def test_the_method_imports_torch_and_itself_only():
    foreign = {
        (name, module.split(".")[0])
        for name, tree in TREES.items()
        if room_of(name) == "method"
        for module in imported(tree)
        if module.split(".")[0] not in METHOD_IMPORTS
    }
    assert foreign == FOREIGN_TO_METHOD


def test_libraries_that_few_have_are_imported_where_they_are_used():
    """Importing any room but ``integrations``, the command line too, needs none of them."""
    rare = {"ray", "pyarrow", "art", "albumentations"}
    found = {
        (name, module.split(".")[0])
        for name, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Try | ast.If)
        for module in imported(node)
        if module.split(".")[0] in rare
    }
    assert {room_of(name) for name, _ in found} == {"integrations"}


def test_no_circle_of_imports():
    graph = {name: own_modules(tree) - {name, "__init__.py"} for name, tree in TREES.items() if name != "__init__.py"}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_no_module_is_longer_than_one_reads_at_once():
    assert {name for name, path in SOURCES.items() if len(path.read_text().splitlines()) > LONGEST} == TOO_LONG


def loaded_by(*modules: str) -> set[str]:
    """What a fresh interpreter has loaded after it imported these."""
    code = f"import sys, importlib; [importlib.import_module(m) for m in {modules!r}]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return set(done.stdout.split())


def modules_of(room: str) -> list[str]:
    paths = [name.removesuffix(".py").removesuffix("/__init__") for name in SOURCES if room_of(name) == room]
    return [f"{NAME}.{path.replace('/', '.')}" for path in paths]


def test_the_rooms_of_users_load_neither_laboratory_nor_plots():
    loaded = loaded_by(
        *(module for room in ("method", "networks", "transforms", "training") for module in modules_of(room))
    )
    assert f"{NAME}.transforms.transform" in loaded and "torch" in loaded
    assert not {module for module in loaded if module.split(".")[0] == "matplotlib"}
    assert not {module for module in loaded if module.startswith((f"{NAME}.lab", f"{NAME}.cli"))}


@pytest.mark.parametrize("module", ["", ".training.config"])
def test_no_torch_before_it_is_needed(module):
    loaded = loaded_by(NAME + module)
    assert NAME in loaded and "torch" not in loaded and "numpy" not in loaded
