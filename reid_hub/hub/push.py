"""Publish a checkpoint folder on the Hub: check it, then upload it in one commit."""

from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from reid_hub.errors import RunError
from reid_hub.hub.card import REPO_ID
from reid_hub.hub.folder import checkpoint_files

# Files of an earlier commit with these suffixes would be loaded or run with the new weights.
REPLACED = (".safetensors", ".safetensors.index.json", ".py", ".bin")


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a person re-identification model",
    token: str | bool | None = None,
) -> CommitInfo:
    """Upload weights, configuration, code, image processor, card and results in one commit; returns the commit.

    The commit becomes visible as a whole or not at all. It removes weights and code of earlier commits that are not in
    the folder; other files of the repository stay. HF_ENDPOINT selects the server.

    Args:
        repo_id: "namespace/name", or "name" for the user of the token; created if it does not exist.
        private: whether a new repository is private; True also refuses to upload to a public one.
        revision: branch to commit to; created if it does not exist.
        token: access token (default: HF_TOKEN or that of `hf auth login`).

    Raises:
        FileNotFoundError, ValueError: if the folder cannot be published, see `checkpoint_files`.
        RuntimeError: if the server cannot be reached or refuses; says what to do.
    """
    folder = Path(folder)
    files = checkpoint_files(folder)
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        repository = api.model_info(repo_id, revision=revision)
        if private and not repository.private:
            raise RunError(
                f"{repo_id} exists on {api.endpoint} and is public, but private=True was asked for: make it private in "
                "its settings, or choose another name. Nothing was uploaded"
            )
        return api.create_commit(
            repo_id,
            list(_operations(files, repo_id, [sibling.rfilename for sibling in repository.siblings])),
            commit_message=commit_message,
            revision=revision,
            parent_commit=repository.sha,
        )
    except (HTTPError, OSError, RuntimeError) as error:
        reason = _reason(error, token)
        if reason is None:
            raise
        raise RunError(f"could not publish {folder} as {repo_id} on {api.endpoint}: {reason}") from error


def _operations(
    files: dict[str, Path], repo_id: str, existing: list[str]
) -> Iterator[CommitOperationAdd | CommitOperationDelete]:
    for name, path in files.items():
        # The card was written before the repository had a name.
        card = path.read_text(encoding="utf-8").replace(REPO_ID, repo_id).encode() if name == "README.md" else path
        yield CommitOperationAdd(name, card)
    for name in existing:
        if name.endswith(REPLACED) and name not in files:
            yield CommitOperationDelete(name)


def _reason(error: BaseException, token: str | bool | None) -> str | None:
    """Why an upload failed and what to do, from the error or its causes; None for other errors."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for cause in chain:
        if isinstance(cause, OfflineModeIsEnabled):
            return "offline mode is on. Unset HF_HUB_OFFLINE to publish"
        if isinstance(cause, HfHubHTTPError):
            return _refusal(cause, token)
        if "xet-write-token" in str(cause):
            return "its storage does not speak Xet. Set HF_HUB_DISABLE_XET=1 to upload through LFS"
        if isinstance(cause, (HTTPError, ConnectionError, TimeoutError)):
            return (
                f"the connection failed ({cause}). Check the network and HF_ENDPOINT, then run the same again: "
                "uploaded files are not sent twice, and an unfinished upload is not visible"
            )
    return None


def _refusal(error: HfHubHTTPError, token: str | bool | None) -> str:
    status, message = error.response.status_code, error.server_message or error.response.reason_phrase
    if status == 401 and not (token or (token is None and get_token())):
        advice = "no token was given. Make one with write access, then run `hf auth login` or set HF_TOKEN"
    elif status == 401:
        advice = "the token was refused. Check HF_TOKEN, or run `hf auth login` with a token that has write access"
    elif status == 403:
        advice = (
            "the token may not write there. Use your own namespace or one you belong to, and a token with write access"
        )
    elif status == 404:
        advice = "the repository or revision does not exist, or the token may not see it. Check the name and the token"
    elif status == 412:
        advice = "somebody else committed meanwhile. Run the same again"
    elif status >= 500:
        advice = "the server failed, nothing was changed. Run the same again later"
    else:
        advice = "the server refused the upload, nothing was changed"
    return f"{advice} ({status}: {message})"
