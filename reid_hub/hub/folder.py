"""Check a checkpoint folder before it is published."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from safetensors import SafetensorError, safe_open

from reid_hub.errors import MissingError, ReIDError
from reid_hub.files import inside

REQUIRED = {
    "config.json": "save the model with model.save_pretrained",
    "preprocessor_config.json": "save the model with model.save_pretrained, which writes its image processor too",
    "README.md": "write the card with `reid-hub card FOLDER`",
}
# Nothing else is published, in particular no pickles: they run code on the machine that loads them.
PUBLISHED = {".safetensors", ".json", ".py", ".md", ".txt", ".png", ".svg", ".onnx"}
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".pyc"}


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        ValueError: if it is not valid JSON; names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ReIDError(f"{path} is not valid JSON ({error}): write it again, it may be truncated") from error


def checkpoint_files(folder: Path) -> dict[str, Path]:
    """Check the files of a checkpoint and return them by name; sub-folders and hidden files are skipped.

    Raises:
        FileNotFoundError: if the folder or a required file is missing.
        ValueError: if there are pickles or other unexpected files, links out of the folder, or damaged files.
    """
    if not folder.is_dir():
        raise MissingError(f"no folder {folder}: give the folder that model.save_pretrained wrote")
    files = dict(_files(folder))
    strangers = [name for name in files if Path(name).suffix not in PUBLISHED]
    if strangers:
        pickles = [name for name in strangers if Path(name).suffix in PICKLES]
        reason = f"; {', '.join(pickles)} can run code on the machine that loads them" if pickles else ""
        raise ReIDError(
            f"{folder} holds files that do not belong to a checkpoint: {', '.join(strangers)}{reason}. Remove them, or "
            "save the model alone into an empty folder with model.save_pretrained"
        )
    for name, remedy in REQUIRED.items():
        if name not in files:
            raise MissingError(f"{folder} has no {name}: {remedy}")
    if not any(name.endswith(".safetensors") for name in files):
        raise MissingError(f"{folder} has no .safetensors weights: save the model with model.save_pretrained")
    for name, path in files.items():
        _check(name, path)
    _check_code(folder, files)
    return files


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of a folder, without sub-folders (a run's checkpoints and logs) and hidden files."""
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("."):
            inside(folder, path.name)
            if path.is_file():
                yield path.name, path


def _check(name: str, path: Path) -> None:
    if name.endswith(".json"):
        read_json(path)
    elif name.endswith(".safetensors"):
        try:
            with safe_open(path, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            raise ReIDError(f"{path} is not a complete safetensors file ({error}): save the model again") from error
    elif name == "README.md":
        try:
            ModelCard.load(path)
        except Exception as error:  # the YAML parser raises many types
            raise ReIDError(
                f"{path} has metadata that cannot be read ({error}): write it again with `reid-hub card FOLDER`"
            ) from error


def _check_code(folder: Path, files: dict[str, Path]) -> None:
    """Check that every module named by config.json or another module is there: loading needs them."""
    wanted = {reference.partition(".")[0] for reference in read_json(files["config.json"]).get("auto_map", {}).values()}
    for name, path in files.items():
        if name.endswith(".py"):
            wanted |= set(re.findall(r"^\s*from \.(\w+) import", path.read_text(encoding="utf-8"), re.MULTILINE))
    missing = sorted(f"{module}.py" for module in wanted if f"{module}.py" not in files)
    if missing:
        raise MissingError(f"{folder} lacks code that it refers to: {', '.join(missing)}; save the model again")
