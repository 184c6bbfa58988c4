"""The rooms of the house: imports run one way, and what each may load."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = (
    "shared",
    "structures",
    "tuners",
    "models",
    "data",
    "methods",
    "records",
    "config",
    "training",
    "studies",
    "report",
    "experiments",
)
"""Each may import those before it, and only them."""
ORDER = (*(f"surm.{room}" for room in ROOMS), "benchmarks", "scripts")
KNOWN = {  # rooms that know less than their place in the order allows
    "surm.structures": {"surm.shared"},
    "surm.tuners": {"surm.shared", "surm.structures"},
    "surm.models": {"surm.shared"},
    "surm.data": {"surm.shared", "surm.models"},
    "surm.records": {"surm.shared"},
    "surm.report": {"surm.shared", "surm.records", "surm.methods"},
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    module_name(path): path for folder in ("surm", "benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")
}


def imports_of(module: str) -> set[str]:
    """Modules that a file imports anywhere in it, also inside functions and for the type checker alone."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative name"
            # `from surm.data import glue` imports a file; `from surm.data import Task` does not.
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
            found |= submodules or {str(node.module)}
    return found


GRAPH = {module: imports_of(module) for module in FILES}


def room(module: str) -> str:
    return module.split(".")[0] if module.startswith(("benchmarks", "scripts")) else ".".join(module.split(".")[:2])


ROOM_GRAPH: dict[str, set[str]] = {name: set() for name in ORDER}
for module, imported in GRAPH.items():
    if module != "surm":
        own = {room(name) for name in imported if name.split(".")[0] in ("surm", "benchmarks") and name != "surm"}
        ROOM_GRAPH[room(module)] |= own - {room(module)}


def test_twelve_rooms(capsys):
    listed = sorted(path.name for path in (ROOT / "surm").iterdir() if path.name != "__pycache__")
    assert listed == sorted([*ROOMS, "__init__.py"])
    assert ROOM_GRAPH.keys() == set(ORDER)
    with capsys.disabled():
        print(f"\n{len(ORDER)} rooms, {sum(map(len, ROOM_GRAPH.values()))} arrows")
        for name in ORDER:
            print(f"  {name:<18} imports {', '.join(sorted(ROOM_GRAPH[name], key=ORDER.index)) or 'nothing'}")


@pytest.mark.parametrize("name", ORDER)
def test_a_room_imports_rooms_below_it_alone(name):
    below = set(ORDER[: ORDER.index(name)])
    assert ROOM_GRAPH[name] <= KNOWN.get(name, below) & below


def test_files_import_in_no_circle():
    graph = {module: {name for name in imported if name in FILES} - {"surm"} for module, imported in GRAPH.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, naming the circle


@pytest.mark.parametrize("name", ["surm", *(f"surm.{room}" for room in ROOMS), "benchmarks"])
def test_a_room_says_what_belongs_there(name):
    text = ast.get_docstring(ast.parse(FILES[name].read_text()))
    assert text
    if name.startswith("surm."):
        assert "import" in text


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("surm.structures", {"torch", "triton"}),
        ("surm.tuners", {"torch", "peft", "transformers", "huggingface_hub"}),
    ],
)
def test_library_imports(name, allowed):
    imported = {
        base
        for module in FILES
        if room(module) == name
        for other in GRAPH[module]
        if (base := other.split(".")[0]) != "surm"
    }
    assert "torch" in imported
    assert imported - set(sys.stdlib_module_names) <= allowed


def test_triton_is_imported_by_kernels_alone():
    """It is not there without CUDA."""
    importing = {module for module in FILES if "triton" in {name.split(".")[0] for name in GRAPH[module]}}
    assert importing
    assert all(module.startswith("surm.structures.gpu.") for module in importing)


def test_importing_surm_loads_the_library_alone():
    command = "import sys, surm; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert {"torch", "peft", "surm.tuners"} <= loaded
    other = {"hydra", "omegaconf", "timm", "datasets", "wandb", "onnx", "matplotlib", "surm.training"}
    assert not (other | {"surm.structures.gpu.form"}) & loaded
