"""Test which module imports what: the packages are separate, and each library has its home."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "training", "phantom")
# Library -> the only modules that may import it.
HOMES = {
    "pipeline": {
        "pydicom": {"pipeline.dicom"},
        "dask": {"pipeline.engine"},
        "distributed": {"pipeline.engine"},
        "numba": {"pipeline.kernel", "pipeline.cache.lz4", "pipeline.dicom.elements"},
        "yaml": {"pipeline.planning.yaml_text"},
        "fsspec": {"pipeline.source.remote", "pipeline.upkeep.targets"},
        "click": {"pipeline.cli"},
        "fcntl": {"pipeline.system"},
        "resource": {"pipeline.system"},
    },
    "phantom": {
        "pydicom": {"phantom.write"},
        "numba": {"phantom.compiled", "phantom.tissue"},
    },
    "training": {
        "fsspec": {"training.data.mirror"},
        "click": {"training.cli"},
        "fcntl": {"training.system"},
        "resource": {"training.system"},
        # DICOM answers and the service have their own extras.
        "pydicom": {"training.study.dicom"},
        "highdicom": {"training.study.dicom"},
        "fastapi": {"training.study.service"},
        "uvicorn": {"training.study.service"},
        "python_multipart": {"training.study.uploads"},
    },
}
FORBIDDEN = {
    "pipeline": {"training", "torch", "torchvision"},
    "phantom": {"pipeline", "training", "torch", "torchvision", "dask", "click"},
    "training": {"pipeline", "phantom", "dask", "distributed"},
}


def modules(package: str) -> dict[str, Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports(file: Path) -> set[str]:
    """Return the full names of all modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_the_packages_meet_only_on_disk(package):
    for name, file in modules(package).items():
        wrong = {found.split(".")[0] for found in imports(file)} & FORBIDDEN[package]
        assert not wrong, f"{name} imports {wrong}"


@pytest.mark.parametrize("package", PACKAGES)
def test_each_library_has_its_home(package):
    for name, file in modules(package).items():
        for library, homes in HOMES[package].items():
            if library in {found.split(".")[0] for found in imports(file)}:
                assert any(name == home or name.startswith((f"{home}.", f"{home}_")) for home in homes), (
                    f"{name} imports {library}, which only {sorted(homes)} may import"
                )


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_each_other_in_a_circle(package):
    known = modules(package)
    edges = {name: imports(file) & known.keys() - {name, package} for name, file in known.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for following in sorted(edges[name]):
                visit(following, (*path, name))
            done.add(name)

    for name in known:
        visit(name, ())


@pytest.mark.parametrize(
    ("command", "heavy"),
    [
        ("import pipeline.cli.main", "numpy pandas pydicom dask distributed numba zarr yaml"),
        ("import pipeline.engine.build, pipeline.planning.settings", "pandas pydicom dask distributed numba zarr"),
        ("import training.cli.main", "torch torchvision pandas sklearn zarr matplotlib"),
    ],
)
def test_commands_that_must_start_fast_import_nothing_heavy(command, heavy):
    code = f"{command}\nimport sys\nprint(*(set({heavy.split()!r}) & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert found.strip() == ""


def test_only_one_module_prints():
    for name, file in modules("pipeline").items():
        nodes = ast.walk(ast.parse(file.read_text()))
        calls = [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]
        printing = [call for call in calls if call.split(".")[-1] in ("print", "echo", "secho")]
        assert not printing or name == "pipeline.terminal", f"{name}: {printing}; use pipeline.terminal"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_a_docstring_and_no_function_is_long(package):
    for name, file in modules(package).items():
        tree = ast.parse(file.read_text())
        if file.read_text().strip():
            assert ast.get_docstring(tree), f"{name}: has no docstring"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= 60, f"{name}.{node.name} has {lines} lines"
