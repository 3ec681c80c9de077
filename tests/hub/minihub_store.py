"""What the Hub in memory keeps (repositories, commits, blobs) and the rules for changing it."""

import base64
import hashlib
import json
import re
import secrets
import time
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import yaml
from starlette.exceptions import HTTPException

LICENSES = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "other", "unknown"}


class HubError(HTTPException):
    """An error the way the Hub words it: a status, `X-Error-Code`, `X-Error-Message` and a JSON body."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(status, message, {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}))


@dataclass(frozen=True)
class Blob:
    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        """The sha256 of an LFS object, the git blob hash of a regular file."""
        size = len(self.content)
        return self.sha256 if self.lfs else hashlib.sha1(b"blob %d\0" % size + self.content).hexdigest()

    def entry(self, path: str) -> dict:
        """Its row in a listing."""
        row = {"type": "file", "path": path, "size": len(self.content), "oid": self.etag[:40]}
        return row | ({"lfs": {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}} if self.lfs else {})


@dataclass(frozen=True)
class Commit:
    files: dict[str, Blob]
    title: str
    parent: "Commit | None" = None
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()))
    oid: str = field(default_factory=lambda: secrets.token_hex(20))

    def tree(self, folder: str = "", recursive: bool = True) -> list[dict]:
        """Rows of the files and folders under `folder`."""
        prefix = f"{folder}/" if folder else ""
        rows = {path: blob.entry(path) for path, blob in self.files.items() if path.startswith(prefix)}
        for path in list(rows):
            parents = [str(parent) for parent in PurePosixPath(path).parents]
            rows |= {name: folder_entry(name) for name in parents if name != "." and name.startswith(prefix)}
        return [row for path, row in sorted(rows.items()) if recursive or "/" not in path.removeprefix(prefix)]


class Repo:
    """A repository: its commits, its branches and tags, and the LFS objects that were uploaded to it."""

    def __init__(self, kind: str, name: str, private: bool) -> None:
        self.kind, self.name, self.private = kind, name, private
        self.lfs: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.branches: dict[str, str] = {}
        self.commits: dict[str, Commit] = {}
        self._add(Commit({".gitattributes": Blob(b"*.safetensors filter=lfs\n", lfs=False)}, "initial commit"), "main")

    def commit(self, revision: str = "main") -> Commit:
        """The commit a branch, a tag or a hash names."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[oid]

    def history(self, revision: str = "main") -> list[Commit]:
        """The commits that lead to `revision`, newest first."""
        commits, commit = [], self.commit(revision)
        while commit:
            commits, commit = [*commits, commit], commit.parent
        return commits

    def change(self, branch: str, body: bytes) -> Commit:
        """Carry a commit request (lines of JSON) out, all or nothing: the branch moves last."""
        if branch not in self.branches:
            raise HubError(400, None, f"{branch} is not a branch")
        lines = [json.loads(line) for line in body.splitlines()]
        if not lines or lines[0]["key"] != "header":
            raise HubError(400, None, "the first line must be the header")
        header, parent = lines[0]["value"], self.commit(branch)
        if header.get("parentCommit", parent.oid) != parent.oid:
            raise HubError(412, None, "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for line in lines[1:]:
            self._apply(files, line["key"], line["value"])
        return self._add(Commit(files, header["summary"], parent), branch)

    def _add(self, commit: Commit, branch: str) -> Commit:
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit

    def _apply(self, files: dict[str, Blob], operation: str, value: dict) -> None:
        path = value["path"]
        if operation == "file":
            files[path] = Blob(base64.b64decode(value["content"], validate=True), lfs=False)
        elif operation == "lfsFile":
            if value["oid"] not in self.lfs:
                raise HubError(400, None, f"LFS pointer of {path} points to an object that was never uploaded")
            files[path] = Blob(self.lfs[value["oid"]], lfs=True)
        elif operation in ("deletedFile", "deletedFolder"):
            gone = [file for file in files if file == path or file.startswith(f"{path.rstrip('/')}/")]
            if not gone:
                raise HubError(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
            for file in gone:
                del files[file]
        else:
            raise HubError(400, None, f"unknown operation {operation!r}")


def folder_entry(path: str) -> dict:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def card_errors(content: str) -> list[str]:
    """What the Hub would refuse in the metadata of a card: names, types and the shape of the model-index."""
    match = re.match(r"---\n(.*?)\n---(\n|$)", content, re.DOTALL)
    try:
        data = yaml.safe_load(match.group(1)) if match else {}
    except yaml.YAMLError as error:
        return [f"metadata is not YAML: {error}"]
    if not isinstance(data, dict):
        return ["metadata must be a mapping"]
    errors = []
    if "license" in data and data["license"] not in LICENSES:
        errors.append(f'"license" must be one of {sorted(LICENSES)}')
    for key in ("pipeline_tag", "library_name", "license_name"):
        if not isinstance(data.get(key, ""), str):
            errors.append(f'"{key}" must be a string')
    for key in ("tags", "datasets", "base_model"):
        values = data.get(key, [])
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
            errors.append(f'"{key}" must be a list of strings')
    for model in data.get("model-index", []):
        errors += _model_index_errors(model)
    return errors


def _model_index_errors(model: dict) -> list[str]:
    errors = [] if isinstance(model.get("name"), str) else ['"model-index[].name" must be a string']
    for result in model.get("results", []):
        task, dataset = result.get("task", {}), result.get("dataset", {})
        if not all(isinstance(value, str) for value in (task.get("type"), dataset.get("type"), dataset.get("name"))):
            errors.append('"model-index[].results[]" needs task.type, dataset.type and dataset.name')
        if not result.get("metrics") or not all({"type", "value"} <= metric.keys() for metric in result["metrics"]):
            errors.append('"model-index[].results[].metrics[]" needs type and value')
    return errors
