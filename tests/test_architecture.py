"""The shape of the package: imports point down the pipeline, model files can travel, an import stays light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "reid_hub"
STAGES = [
    "data", "models", "index", "losses", "methods", "training", "evaluation", "hub", "runs", "app", "cli",
]  # fmt: skip
BELOW_ALL = {"version", "registry", "files", "errors", "logging", "records", "compat"}
MODEL_FILES = sorted(path for path in (PACKAGE / "models").glob("*.py") if path.name != "__init__.py")


def imported_stages(path: Path) -> set[str]:
    """Names directly below reid_hub that a file imports, anywhere in it, absolute or relative."""
    package = path.relative_to(PACKAGE.parent).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                base = package[: len(package) - node.level + 1]
                module = ".".join([*base, module] if module else base)
            names = [module] if module.count(".") else [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("reid_hub.")}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_the_pipeline(path):
    stage = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if stage == "__init__":
        return
    allowed = BELOW_ALL if stage in BELOW_ALL else BELOW_ALL | set(STAGES[: STAGES.index(stage) + 1])
    if stage == "models":
        allowed = allowed - {"data"}
    assert imported_stages(path) - allowed == set()


def module_imports() -> dict[str, set[str]]:
    """Which modules of the package each of them imports: anywhere in it, inside functions and for the checker too."""
    files = {path.with_suffix("").relative_to(PACKAGE.parent).parts: path for path in PACKAGE.rglob("*.py")}
    files = {parts[:-1] if parts[-1] == "__init__" else parts: path for parts, path in files.items()}
    graph: dict[str, set[str]] = {}
    for parts, path in files.items():
        package, found = parts if path.name == "__init__.py" else parts[:-1], set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {tuple(alias.name.split(".")) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                start = package[: len(package) - node.level + 1] if node.level else ()
                base = (*start, *(node.module.split(".") if node.module else ()))
                found |= {(*base, alias.name) if (*base, alias.name) in files else base for alias in node.names}
        graph[".".join(parts)] = {".".join(name) for name in found if name in files and name != parts}
    return graph


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other."""
    reached = {}
    for start in graph:
        seen, waiting = set(), [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        reached[start] = seen
    groups = {tuple(sorted(b for b in reached[a] if a in reached[b])) for a in graph if a in reached[a]}
    return sorted(map(list, groups))


def test_modules_do_not_import_each_other():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d", "a"}}) == [["b", "c"], ["d"]]
    graph = module_imports()
    assert graph["reid_hub.data.images"] > {"reid_hub.compat", "reid_hub.data.decoding"}
    assert "reid_hub.models.modeling_reid" in graph["reid_hub.models.classification_reid"]
    assert cycles(graph) == []


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.name)
def test_model_file_can_travel_with_a_checkpoint(path):
    libraries = {
        "torch",
        "transformers",
        "huggingface_hub",
        "safetensors",
        "numpy",
        "PIL",
        "tqdm",
        *sys.stdlib_module_names,
    }
    siblings = {sibling.stem for sibling in MODEL_FILES}
    tree = ast.parse(path.read_text())
    guarded = {id(child) for node in ast.walk(tree) if isinstance(node, ast.Try) for child in node.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in guarded:
            assert {alias.name.split(".")[0] for alias in node.names} <= libraries
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                assert node.level == 1
                assert node.module in siblings
            else:
                assert node.module.split(".")[0] in libraries
    # transformers finds relative imports by a pattern over the text, docstrings included.
    written = set(re.findall(r"^\s*from\s+\.(\S+)\s+import", path.read_text(), flags=re.MULTILINE))
    assert written <= siblings


def test_every_model_file_is_reached_from_a_file_that_is_loaded():
    """transformers copies the file of the saved class and, from import to import, what it needs."""
    reached, open_files = set(), {"modeling_reid", "classification_reid", "weight_chain"}
    while open_files:
        name = open_files.pop()
        reached.add(name)
        text = (PACKAGE / "models" / f"{name}.py").read_text()
        open_files |= set(re.findall(r"^\s*from\s+\.(\S+)\s+import", text, flags=re.MULTILINE)) - reached
    assert reached == {path.stem for path in MODEL_FILES}


def test_only_the_command_line_prints():
    """Everything else uses the library's logger."""
    speaking = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in {"cli", "logging.py"}
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert speaking == []


def test_import_is_light():
    heavy = ["datasets", "sklearn", "faiss", "gradio", "matplotlib", "timm", "typer", "pymilvus"]
    code = f"import sys, reid_hub; print([name for name in {heavy!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_every_public_name_exists():
    import reid_hub

    for name in reid_hub.__all__:
        assert getattr(reid_hub, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = reid_hub.nothing


def lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = function.body[1 if ast.get_docstring(function) and len(function.body) > 1 else 0]
    return function.body[0].lineno - function.lineno + function.end_lineno - first.lineno + 1


def test_functions_stay_readable():
    long = {
        f"{path.relative_to(PACKAGE)}:{node.name}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of_code(node) > 60
    }
    assert long == set()
