"""The house rules: who may import whom, what stays out of where, and how long things may grow.

Each test lists every offender, so that one run tells all there is to mend. A rule with exceptions
names them with a reason and fails when one is no longer needed.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("engine", "backends", "kernels", "sharding")
FACES = ("__init__.py", "__main__.py")

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60  # without docstrings, as classes
MAX_CLASS_LINES = 250
# "path" or "path::function": why it may be longer
LONGER = {
    "engine/scheduler.py::Scheduler": "the one owner of a request's state, from waiting to finished",
}

FRAMEWORKS = ("jax", "jaxlib", "flax", "torch")
SERVER_PACKAGES = ("fastapi", "starlette", "uvicorn", "zmq", "msgspec", "pydantic", "prometheus_client")


def paths(*patterns: str) -> list[str]:
    """Our Python files, as paths from the root, under the rooms unless patterns say otherwise."""
    found = {path for pattern in patterns or ALL for path in ROOT.glob(pattern)}
    return sorted(path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts)


ALL = (*FACES, *(f"{room}/**/*.py" for room in ROOMS))
EVERYTHING = (*ALL, "tests/**/*.py", "benchmarks/**/*.py", "examples/**/*.py", "scripts/**/*.py")


@cache
def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), path)


def imports(path: str) -> Iterator[str]:
    """Absolute module names that a file imports, wherever in it; ours begin with "radixmesh."."""
    package = ("radixmesh", *Path(path).parent.parts)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def our_files(path: str) -> set[str]:
    """Files of ours that a file imports."""
    candidates = (name.removeprefix("radixmesh.").replace(".", "/") + ".py" for name in imports(path))
    return {each for each in candidates if (ROOT / each).is_file()}


def offenders(pattern: str, forbidden: tuple[str, ...]) -> list[str]:
    """Where files under `pattern` import a module of `forbidden`, or a part of one."""
    return [
        f"{path}: {name}"
        for path in paths(pattern)
        for name in imports(path)
        if any(name == each or name.startswith(each + ".") for each in forbidden)
    ]


# Direction


@pytest.mark.parametrize("room", ["engine", "kernels", "sharding"])
def test_lower_rooms_import_nothing_of_ours_but_themselves(room: str) -> None:
    bad = [
        f"{path}: {name}"
        for path in paths(f"{room}/**/*.py")
        for name in imports(path)
        if name.split(".")[0] == "radixmesh" and not f"{name}.".startswith(f"radixmesh.{room}.")
    ]
    assert not bad, f"{room} may import only itself"


def test_backends_do_not_import_the_command_line_or_the_face() -> None:
    bad = [
        f"{path}: {name}"
        for path in paths("backends/**/*.py")
        for name in imports(path)
        if name.split(".")[0] == "radixmesh" and name.split(".")[1:2] not in [[room] for room in ROOMS]
    ]
    edges = offenders("backends/**/*.py", ("radixmesh.engine.cli", "radixmesh.engine.server"))
    bad += [
        each for each in edges if ": radixmesh.engine.cli.joints" not in each
    ]  # made for backends to fill
    assert not bad, "backends import engine, kernels and sharding, and neither cli nor server"


def test_lower_rooms_do_not_import_backends_by_name() -> None:
    """import_module("...backends.x") would slip through a look at import statements."""
    bad = [
        f"{path}:{node.lineno}: {node.value}"
        for room in ("engine", "kernels", "sharding")
        for path in paths(f"{room}/**/*.py")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"(radixmesh)?\.*backends(\.\w+)+", node.value)
    ]
    assert not bad


def test_product_code_imports_across_rooms_by_relative_imports() -> None:
    bad = [
        f"{path}:{node.lineno}"
        for path in paths()
        for node in ast.walk(tree(path))
        if (
            isinstance(node, ast.ImportFrom) and not node.level and f"{node.module}.".startswith("radixmesh.")
        )
        or (isinstance(node, ast.Import) and any(f"{a.name}.".startswith("radixmesh.") for a in node.names))
    ]
    assert not bad


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {path: our_files(path) - {path} for path in paths() if path not in FACES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("a circle: " + " -> ".join(reversed(error.args[1])))


@pytest.mark.parametrize(
    ("pattern", "forbidden"),
    [
        ("engine/**/*.py", FRAMEWORKS),
        ("backends/models/**/*.py", FRAMEWORKS),
        ("backends/fake/**/*.py", FRAMEWORKS),
        ("backends/jax/**/*.py", ("torch", "triton", "radixmesh.backends.torch_cuda")),
        ("backends/torch_cuda/**/*.py", ("jax", "jaxlib", "flax", "radixmesh.backends.jax")),
        ("kernels/**/reference.py", (*FRAMEWORKS, "triton")),
        ("sharding/**/*.py", ("torch", "triton", "numpy.core")),
    ],
)
def test_frameworks_stay_in_their_backend(pattern: str, forbidden: tuple[str, ...]) -> None:
    assert not offenders(pattern, forbidden), f"{pattern} must not import {', '.join(forbidden)}"


PICKLERS = ("pickle", "marshal", "shelve", "copyreg", "multiprocessing", "cloudpickle", "dill", "joblib")
PICKLING = ("send_pyobj", "recv_pyobj", "broadcast_object_list", "all_gather_object", "allow_pickle")


def test_nothing_that_could_run_code_is_read_from_a_file_or_a_process() -> None:
    """No pickle, under any of its names; weights that torch.load would read are refused, not loaded."""
    bad = [each for pattern in EVERYTHING for each in offenders(pattern, PICKLERS)]
    for path in paths(*EVERYTHING):
        for node in ast.walk(tree(path)):
            name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "arg", None)
            if name in PICKLING or (isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load"):
                bad.append(f"{path}: {name}")
    assert not bad


# What is loaded, in a fresh interpreter

PROBE = """
import importlib, sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} must not be imported here", name=name)

sys.path.insert(0, SRC)
sys.meta_path.insert(0, Absent())
for module in MODULES:
    try:
        importlib.import_module(module)
    except Exception as error:
        print(f"{module}: {type(error).__name__}: {error}")
print(*sorted(set(BLOCKED) & set(sys.modules)))
"""


def import_without(blocked: tuple[str, ...], files: list[str]) -> str:
    """Import files in a fresh interpreter in which `blocked` cannot be found; returns what went wrong."""
    modules = ["radixmesh." + path.removesuffix(".py").replace("/", ".") for path in files]
    settings = f"BLOCKED = {blocked!r}\nMODULES = {modules!r}\nSRC = {str(ROOT / 'src')!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", settings + PROBE], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_engine_imports_with_neither_jax_nor_torch() -> None:
    files = paths("engine/**/*.py")
    assert files
    assert import_without((*FRAMEWORKS, "triton"), files) == ""


def test_plans_can_be_made_without_frameworks() -> None:
    files = paths("sharding/**/*.py", "backends/*.py", "backends/models/**/*.py", "backends/fake/**/*.py")
    assert import_without((*FRAMEWORKS, "triton"), files) == ""


def test_jax_backend_imports_without_torch() -> None:
    files = paths("backends/jax/**/*.py", "kernels/**/xla.py", "kernels/**/pallas_tpu.py")
    assert import_without(("torch", "triton"), files) == ""


def test_torch_backend_imports_without_jax() -> None:
    files = paths("backends/torch_cuda/**/*.py", "kernels/**/torch_ref.py", "kernels/**/triton.py")
    if not files:
        pytest.skip("backends/torch_cuda does not exist yet")
    assert import_without(("jax", "jaxlib", "flax"), files) == ""


def test_offline_use_imports_none_of_the_servers_packages() -> None:
    files = [path for path in ("engine/llm.py", "backends/api.py", "__main__.py") if (ROOT / path).is_file()]
    assert import_without((*SERVER_PACKAGES, *FRAMEWORKS), files) == ""


# Layout


def test_no_init_file_below_the_root() -> None:
    """A regular package called kernels or jax would hide Hugging Face's, or jax itself."""
    folders = (*ROOMS, "tests", "benchmarks", "examples", "scripts")
    assert not [path for folder in folders for path in paths(f"{folder}/**/__init__.py")]


def test_no_file_is_named_for_what_it_is_not() -> None:
    names = {"utils.py", "util.py", "helpers.py", "helper.py", "misc.py"}
    assert not [path for path in paths(*EVERYTHING) if Path(path).name in names]


def test_folders_are_shallow() -> None:
    assert not [path for path in paths() if len(Path(path).parent.parts) > 3]


def test_tests_stand_in_the_folder_of_what_they_test() -> None:
    folders = {Path(path).relative_to("tests").parent for path in paths("tests/*/**/*.py")}
    assert not [f"tests/{folder}" for folder in folders if not (ROOT / folder).is_dir()]


# Size


def longer_than_allowed() -> dict[str, int]:
    found = {}
    for path in paths(*EVERYTHING):
        lines = len((ROOT / path).read_text().splitlines())
        if lines > MAX_FILE_LINES:
            found[path] = lines
        for node in ast.walk(tree(path)):
            if (
                isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
                and length(node) > MAX_FUNCTION_LINES
            ):
                found[f"{path}::{node.name}"] = length(node)
            if isinstance(node, ast.ClassDef) and length(node) > MAX_CLASS_LINES:
                found[f"{path}::{node.name}"] = length(node)
    return found


def length(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    """Lines from `def` or `class` to the end, without docstrings."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    for each in ast.walk(node):
        if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if ast.get_docstring(each) is not None:
                docstring = each.body[0]
                lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return lines


def test_files_functions_and_classes_stay_small() -> None:
    found = longer_than_allowed()
    assert not {name: lines for name, lines in found.items() if name not in LONGER}, (
        f"at most {MAX_FILE_LINES} lines in a file, {MAX_FUNCTION_LINES} in a function,"
        f" {MAX_CLASS_LINES} in a class"
    )
    assert set(LONGER) <= set(found), "an exception in LONGER is no longer needed"


# Habits


def test_no_mixins_and_no_global_state() -> None:
    bad = []
    for path in paths():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Global):
                bad.append(f"{path}:{node.lineno}: global {', '.join(node.names)}")
            if isinstance(node, ast.ClassDef) and "mixin" in node.name.lower():
                bad.append(f"{path}:{node.lineno}: class {node.name}")
    assert not bad


def environment_readers() -> set[str]:
    return {
        path
        for path in paths()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        and node.attr in ("environ", "environb", "getenv", "putenv")
    }


def test_environment_variables_are_those_that_the_docs_list() -> None:
    """docs/architecture.md has a table `| variable | file | ... |`; nothing else reads the environment."""
    page = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `([\w/.]+)` \|", page, re.MULTILINE)
    assert environment_readers() == {path for _, path in rows}
    assert not [f"{path}: {variable}" for variable, path in rows if variable not in (ROOT / path).read_text()]


def test_no_error_is_swallowed_in_silence() -> None:
    """`except Exception` raises again, or makes use of the error, or logs it, or a comment says why not."""
    bad = []
    for path in paths():
        lines = (ROOT / path).read_text().splitlines()
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            inside = list(ast.walk(ast.Module(node.body, [])))
            handled = any(
                isinstance(each, ast.Raise)
                or (isinstance(each, ast.Name) and each.id == node.name)
                or (isinstance(each, ast.Attribute) and each.attr == "exception")
                for each in inside
            )
            commented = "#" in "".join(lines[node.lineno - 2 : node.end_lineno])
            if broad and not handled and not commented:
                bad.append(f"{path}:{node.lineno}")
    assert not bad


def test_every_public_thing_has_a_docstring() -> None:
    """Modules, classes and functions that others may use; methods may be plain where the class explains."""
    bad = []
    for path in paths():
        if ast.get_docstring(tree(path)) is None:
            bad.append(path)
        if path.startswith("backends/models/families/"):
            continue  # their functions fill the fields of `Family`, which are explained there
        for node in tree(path).body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                if not node.name.startswith("_") and ast.get_docstring(node) is None:
                    bad.append(f"{path}:{node.lineno}: {node.name}")
    assert not bad
