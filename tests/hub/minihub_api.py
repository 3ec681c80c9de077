"""The Hub's API over the repositories in memory, written from the requests that the real clients make (Xet off)."""

import hashlib
import re
import secrets
from collections.abc import Callable
from pathlib import PurePosixPath
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .minihub_store import Commit, HubError, Repo, card_errors, folder_entry

USERS = {"hf_alice": "alice", "hf_bob": "bob", "hf_alice_read": "alice"}
READ_ONLY = {"hf_alice_read"}
ORGANIZATIONS = {"lab": {"alice"}}
LFS_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".parquet", ".npz", ".npy", ".onnx", ".faiss", ".png", ".jpg"}
LFS_SIZE = 10 * 2**20


class HubAPI:
    """`app` is the ASGI application; `url` must be set to the server's own address before the first request."""

    def __init__(self) -> None:
        self.url = ""
        self.repos: dict[tuple[str, str], Repo] = {}
        self._grants: dict[str, tuple[Repo, str, int]] = {}  # key of a storage link: repository, sha256, size
        repo, file = "/api/{kind}/{owner}/{name}", "/{owner}/{name}/resolve/{revision}/{path:path}"
        lfs = "/{owner}/{name}.git/info/lfs/objects/batch"
        table: list[tuple[str, str, Callable]] = [
            ("GET", "/api/whoami-v2", self._whoami),
            ("POST", "/api/validate-yaml", self._validate_yaml),
            ("POST", "/api/repos/create", self._create),
            ("DELETE", "/api/repos/delete", self._delete),
            ("GET", repo, self._info),
            ("GET", repo + "/revision/{revision}", self._info),
            ("GET", repo + "/tree/{revision}", self._tree),
            ("GET", repo + "/tree/{revision}/{path:path}", self._tree),
            ("POST", repo + "/paths-info/{revision}", self._paths_info),
            ("GET", repo + "/refs", self._refs),
            ("GET", repo + "/commits/{revision}", self._commits),
            ("POST", repo + "/branch/{revision}", self._create_branch),
            ("POST", repo + "/tag/{revision}", self._create_tag),
            ("POST", repo + "/preupload/{revision}", self._preupload),
            ("POST", repo + "/commit/{revision}", self._commit),
            ("POST", lfs, self._lfs_batch),
            ("POST", "/datasets" + lfs, self._lfs_batch),
            ("GET", file, self._resolve),
            ("GET", "/datasets" + file, self._resolve),
            ("PUT", "/storage/{key}", self._storage_put),
            ("GET", "/storage/{key}", self._storage_get),
            ("POST", "/storage/{key}/verify", self._storage_verify),
        ]
        routes = [Route(path, handler, methods=[method]) for method, path, handler in table]
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: _error_response})

    # Who may do what: what a user may not read does not exist for them, as on the Hub.

    def _user(self, request: Request) -> str | None:
        token = bearer(request)
        if token is not None and token not in USERS:
            raise HubError(401, None, "Invalid credentials in Authorization header")
        return USERS.get(token)

    def _writer(self, request: Request, owner: str | None) -> str:
        """The namespace to write to, which is the user's own unless another is named."""
        user = self._user(request)
        if user is None:
            raise HubError(401, None, "Invalid username or password.")
        if not _belongs(user, owner or user):
            raise HubError(403, None, f'You don\'t have the rights to create or change a repo under "{owner}"')
        if bearer(request) in READ_ONLY:
            raise HubError(403, None, "You must use a write token to change a repository")
        return owner or user

    def _repo(self, request: Request, write: bool = False) -> Repo:
        owner, name = request.path_params["owner"], request.path_params["name"]
        kind = request.path_params.get("kind", "datasets" if request.url.path.startswith("/datasets/") else "models")
        user = self._user(request)
        repo = self.repos.get((kind, f"{owner}/{name}"))
        if repo is None or (repo.private and not _belongs(user, owner)):
            raise HubError(404 if user else 401, "RepoNotFound", "Repository not found" if user else "Please log in.")
        if write:
            self._writer(request, owner)
        return repo

    def _at(self, request: Request, write: bool = False) -> tuple[Repo, Commit]:
        repo = self._repo(request, write)
        return repo, repo.commit(unquote(request.path_params.get("revision", "main")))

    # Accounts and repositories

    async def _whoami(self, request: Request) -> Response:
        user = self._user(request)
        if user is None:
            raise HubError(401, None, "Invalid username or password.")
        organizations = [{"name": name} for name, members in ORGANIZATIONS.items() if user in members]
        access = {"displayName": "test", "role": "read" if bearer(request) in READ_ONLY else "write"}
        return JSONResponse(
            {"type": "user", "name": user, "fullname": user, "orgs": organizations, "auth": {"accessToken": access}}
        )

    async def _validate_yaml(self, request: Request) -> Response:
        errors = [{"message": error} for error in card_errors((await request.json())["content"])]
        return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)

    async def _named(self, request: Request) -> tuple[str, str]:
        body = await request.json()
        owner = self._writer(request, body.get("organization"))
        return body.get("type", "model") + "s", f"{owner}/{body['name']}"

    async def _create(self, request: Request) -> Response:
        kind, name = key = await self._named(request)
        url = {"url": f"{self.url}/{'datasets/' * (kind == 'datasets')}{name}"}
        if key in self.repos:
            return JSONResponse(url | {"error": "You already created this repo"}, 409)
        self.repos[key] = Repo(kind, name, private=(await request.json()).get("visibility") == "private")
        return JSONResponse(url)

    async def _delete(self, request: Request) -> Response:
        if self.repos.pop(await self._named(request), None) is None:
            raise HubError(404, "RepoNotFound", "Repository not found")
        return JSONResponse({})

    async def _info(self, request: Request) -> Response:
        repo, commit = self._at(request)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        info = {"_id": repo.name, "id": repo.name, "sha": commit.oid, "private": repo.private, "siblings": siblings}
        return JSONResponse(info | {"lastModified": commit.date, "tags": [], "gated": False, "disabled": False})

    async def _tree(self, request: Request) -> Response:
        _, commit = self._at(request)
        folder = unquote(request.path_params.get("path", ""))
        rows = commit.tree(folder, request.query_params.get("recursive", "false").lower() == "true")
        if folder and not rows:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist on this revision")
        return JSONResponse(rows)

    async def _paths_info(self, request: Request) -> Response:
        _, commit = self._at(request)
        paths = (await request.form()).getlist("paths")
        files = [commit.files[path].entry(path) for path in paths if path in commit.files]
        return JSONResponse(files + [folder_entry(path) for path in paths if commit.tree(path)])

    async def _refs(self, request: Request) -> Response:
        repo = self._repo(request)
        branches, tags = (
            [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in refs.items()]
            for kind, refs in (("heads", repo.branches), ("tags", repo.tags))
        )
        return JSONResponse({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    async def _commits(self, request: Request) -> Response:
        repo, commit = self._at(request)
        rows = repo.history(commit.oid)
        return JSONResponse(
            [{"id": row.oid, "title": row.title, "message": "", "date": row.date, "authors": []} for row in rows]
        )

    async def _create_branch(self, request: Request) -> Response:
        repo, name = self._repo(request, write=True), unquote(request.path_params["revision"])
        if name in repo.branches:
            raise HubError(409, None, f"Reference already exists: {name}")
        repo.branches[name] = repo.commit((await request.json()).get("startingPoint", "main")).oid
        return JSONResponse({}, 201)

    async def _create_tag(self, request: Request) -> Response:
        repo, commit = self._at(request, write=True)
        name = (await request.json())["tag"]
        if name in repo.tags:
            raise HubError(409, None, f"Tag reference exists already: {name}")
        repo.tags[name] = commit.oid
        return JSONResponse({}, 201)

    # Upload

    async def _preupload(self, request: Request) -> Response:
        _, commit = self._at(request, write=True)
        answers = []
        for file in (await request.json())["files"]:
            known = commit.files.get(file["path"])
            lfs = PurePosixPath(file["path"]).suffix in LFS_SUFFIXES or file["size"] > LFS_SIZE
            answer = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            answers.append(answer | ({"oid": known.etag} if known else {}))
        return JSONResponse({"files": answers})

    async def _lfs_batch(self, request: Request) -> Response:
        repo, objects = self._repo(request, write=True), []
        for wanted in (await request.json())["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in repo.lfs:
                link = self._grant(repo, wanted["oid"], wanted["size"])
                answer["actions"] = {"upload": {"href": link}, "verify": {"href": f"{link}/verify"}}
            objects.append(answer)
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def _commit(self, request: Request) -> Response:
        repo = self._repo(request, write=True)
        commit = repo.change(unquote(request.path_params["revision"]), await request.body())
        return JSONResponse({"commitOid": commit.oid, "commitUrl": f"{self.url}/{repo.name}/commit/{commit.oid}"})

    # Download, and the storage behind LFS links: a link is its own permission, a token must never reach it

    async def _resolve(self, request: Request) -> Response:
        repo, commit = self._at(request)
        path, headers = unquote(request.path_params["path"]), {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            error = HubError(404, "EntryNotFound", f"{path} does not exist in {repo.name} at {commit.oid}")
            error.headers |= headers
            raise error
        blob = commit.files[path]
        if not blob.lfs:
            return _content(request, blob.content, headers | {"ETag": f'"{blob.etag}"'})
        # The client takes a redirect for one to storage only if it leaves the endpoint's host.
        link = self._grant(repo, blob.sha256, len(blob.content)).replace("127.0.0.1", "localhost")
        linked = {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content)), "Location": link}
        return Response(status_code=302, headers=headers | linked)

    def _grant(self, repo: Repo, oid: str, size: int) -> str:
        key = secrets.token_urlsafe(16)
        self._grants[key] = (repo, oid, size)
        return f"{self.url}/storage/{key}"

    def _granted(self, request: Request) -> tuple[Repo, str, int]:
        if request.method != "POST" and bearer(request):
            raise HubError(400, None, "a token was sent to storage: it must stay on the Hub")
        if request.path_params["key"] not in self._grants:
            raise HubError(403, None, "this link was not given out")
        return self._grants[request.path_params["key"]]

    async def _storage_put(self, request: Request) -> Response:
        repo, oid, size = self._granted(request)
        content = await request.body()
        if len(content) != size or hashlib.sha256(content).hexdigest() != oid:
            raise HubError(400, None, "the content is not what its hash says")
        repo.lfs[oid] = content
        return Response()

    async def _storage_get(self, request: Request) -> Response:
        repo, oid, _ = self._granted(request)
        return _content(request, repo.lfs[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    async def _storage_verify(self, request: Request) -> Response:
        repo, oid, size = self._granted(request)
        if len(repo.lfs.get(oid, b"")) != size:
            raise HubError(404, None, f"no object {oid} of {size} bytes was uploaded")
        return JSONResponse({})


def bearer(request: Request) -> str | None:
    return request.headers.get("authorization", "").removeprefix("Bearer ") or None


def _belongs(user: str | None, owner: str) -> bool:
    return user is not None and (user == owner or user in ORGANIZATIONS.get(owner, ()))


def _content(request: Request, content: bytes, headers: dict[str, str]) -> Response:
    """The content, or the part of it that a `Range: bytes=a-b` asks for."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if not match:
        return Response(content, headers=headers, media_type="application/octet-stream")
    first, last = int(match[1]), min(int(match[2] or len(content) - 1), len(content) - 1)
    if first > last:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{len(content)}"})
    headers = headers | {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
    return Response(content[first : last + 1], 206, headers, "application/octet-stream")


async def _error_response(_: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, headers=dict(error.headers or {}))
