"""What is installed is what is here: links, wheel, dependencies, version, and the commands of the README."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import radixmesh

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WHEEL = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
ENTRIES = WHEEL["only-include"]  # folders and files of the root that make the package
WRITTEN_BY_TESTS = {"failing_backends"}
OURS = {"radixmesh", "tests", "scripts", "benchmarks", *WRITTEN_BY_TESTS}
# modules that come with a package and belong to it
PARTS = {"starlette": "fastapi", "pydantic_core": "pydantic", "jaxlib": "jax", "h11": "uvicorn"}


def name_of(requirement: str) -> str:
    """The distribution of a requirement, as package indexes write it: "ml_dtypes>=0.5" is ml-dtypes."""
    match = re.match(r"[\w.-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


@cache
def required(extra: str | None = None) -> frozenset[str]:
    project = PROJECT["project"]
    listed = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    return frozenset(name_of(each) for each in listed)


# The package


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", radixmesh.__version__)
    changelog = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert radixmesh.__version__ in headings, "the version has no heading in CHANGELOG.md"


def test_public_names_exist_and_unknown_ones_do_not() -> None:
    for name in radixmesh.__all__:
        assert getattr(radixmesh, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Engin'"):
        _ = radixmesh.Engin


def test_importing_the_package_loads_nothing() -> None:
    code = "import sys; before = set(sys.modules); import radixmesh; print(*(set(sys.modules) - before))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded - set(sys.stdlib_module_names) == {"radixmesh"}


def test_links_stand_for_every_entry_and_are_relative() -> None:
    folder = ROOT / "src/radixmesh"
    assert sorted(link.name for link in folder.iterdir() if link.name != "__pycache__") == sorted(ENTRIES)
    for name in ENTRIES:
        assert os.readlink(folder / name) == f"../../{name}"
        assert (folder / name).resolve() == ROOT / name
        assert (ROOT / name).exists()


def test_every_folder_with_product_code_is_in_the_wheel() -> None:
    """A new top-level folder needs its link, its entry in the wheel and its ban as a bare name."""
    aside = {"tests", "benchmarks", "examples", "scripts", "docs", "src", "build", "dist"}
    folders = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and any(path.rglob("*.py"))
    }
    rooms = {entry for entry in ENTRIES if not entry.endswith(".py")}
    assert folders - aside <= rooms
    assert set(PROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]) == rooms
    assert WHEEL["sources"] == {"": "radixmesh"}
    assert PROJECT["tool"]["hatch"]["build"]["dev-mode-dirs"] == ["src"]


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="building the wheel needs hatchling: pip install hatchling")
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns(".*", "__pycache__")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=ignored)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    done = subprocess.run([*command, str(tree)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"radixmesh-{radixmesh.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        packed = {each for each in archive.namelist() if ".dist-info/" not in each}
        meta = {Path(each).name: each for each in archive.namelist() if ".dist-info/" in each}
        metadata = archive.read(meta["METADATA"]).decode()
        assert "radixmesh = radixmesh.__main__:main" in archive.read(meta["entry_points.txt"]).decode()
    here = set()
    for entry in ENTRIES:
        files = [tree / entry] if (tree / entry).is_file() else (tree / entry).rglob("*")
        here |= {f"radixmesh/{file.relative_to(tree).as_posix()}" for file in files if file.is_file()}
    assert packed == here
    assert "License-Expression: Apache-2.0" in metadata
    assert "LICENSE" in meta


def test_licence() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


# Dependencies


def test_every_dependency_has_its_line_and_every_line_its_dependency() -> None:
    page = (ROOT / "docs/dependencies.md").read_text()
    listed = [
        name_of(name) for name in re.findall(r"^\| ([\w.-]+) \|", page, re.MULTILINE) if name != "package"
    ]
    assert len(listed) == len(set(listed)), "a package has two lines"
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = required().union(*(required(extra) for extra in extras))
    assert set(listed) == wanted


def test_every_line_says_what_the_package_does_and_what_we_would_write() -> None:
    page = (ROOT / "docs/dependencies.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| package")]
    assert rows
    assert not [row for row in rows if len([cell for cell in row.split("|") if cell.strip()]) != 3]


def third_party(path: Path) -> set[str]:
    """Top-level modules that a file imports and that are neither ours nor Python's."""
    names: set[str] = set()
    neighbours = (
        {each.stem for each in path.parent.glob("*.py")} if path.parent.name == "benchmarks" else set()
    )
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - OURS - neighbours


def files(*patterns: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern)}


# files that nothing imports before their extra is asked for
OF_EXTRAS = {
    "torch": files(
        "backends/torch_cuda/**/*.py",
        "kernels/tuning.py",
        "kernels/overlap.py",
        "kernels/*/torch_ref.py",
        "kernels/*/triton*.py",
        "kernels/all_reduce/inbox.py",
    ),  # fmt: skip
    "grpc": files("engine/grpc/*.py"),
    "grammar": files("engine/grammar/xgrammar.py", "engine/grammar/outlines.py"),
    "plot": files("engine/cli/plan_plot.py"),
    "otel": files("engine/server/tracing.py"),
    "test": files("tests/**/*.py", "benchmarks/**/*.py", "examples/**/*.py"),
}
ALWAYS = files(*(f"{room}/**/*.py" for room in ("engine", "backends", "kernels", "sharding")))


@pytest.mark.parametrize("extra", [None, *OF_EXTRAS])
def test_what_is_imported_is_declared(extra: str | None) -> None:
    declared = required() | (required(extra) if extra else frozenset())
    providers = packages_distributions()
    missing = {
        f"{path}: {module}"
        for path in (OF_EXTRAS[extra] if extra else ALWAYS.difference(*OF_EXTRAS.values()))
        for module in third_party(ROOT / path)
        if not declared
        & {name_of(each) for each in (PARTS.get(module), *providers.get(module, [module])) if each}
    }
    assert not missing, "add it to pyproject.toml and to docs/dependencies.md, or do without"


# The README's promises


def blocks(language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )


def test_ci_runs_the_readmes_test_command() -> None:
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    ci = (ROOT / ".ci/run").read_text().splitlines()
    command = "pip install -e '.[test]' && scripts/test"
    assert command in commands
    assert ci[-1] == command, "the pytest summary is what .ci/run prints last"
    assert "scripts/check" in ci
    assert "pip install . && radixmesh serve" in commands


@pytest.mark.parametrize("script", ["scripts/check", "scripts/test", ".ci/run"])
def test_scripts_stop_at_the_first_failure(script: str) -> None:
    text = (ROOT / script).read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / script], check=True)


def test_python_in_the_documentation_is_python() -> None:
    examples = blocks("python")
    assert examples
    for example in examples:
        compile(example, "README.md", "exec")


def test_files_that_the_documentation_names_exist() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    missing = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert not missing
