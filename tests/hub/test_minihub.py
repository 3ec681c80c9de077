"""The test server against the real huggingface_hub client: what the other tests stand on."""

import socket

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .client import start_python
from .minihub import Fault

SMALL, LARGE = b"# a card\n", bytes(range(256)) * 4096  # a regular file; 1 MiB that goes through LFS

UPLOAD = """
from huggingface_hub import HfApi, CommitOperationAdd
files = [CommitOperationAdd("README.md", b"# a card\\n"), CommitOperationAdd("w.safetensors", bytes(range(256)) * 4096)]
HfApi().create_repo("alice/m")
HfApi().create_commit("alice/m", files, commit_message="both")
"""


@pytest.fixture
def api(hub) -> HfApi:
    return HfApi(hub.url, token="hf_alice")


def upload(api: HfApi) -> str:
    """Both files in one commit; returns its hash."""
    api.create_repo("alice/m", exist_ok=True)
    return commit(api, message="both", README_md=SMALL, w_safetensors=LARGE)


def commit(api: HfApi, repo: str = "alice/m", message: str = "x", **files: bytes) -> str:
    operations = [CommitOperationAdd(path.replace("_", "."), content) for path, content in files.items()]
    return api.create_commit(repo, operations, commit_message=message).oid


def test_one_commit_holds_regular_and_lfs_files(hub, api):
    oid = upload(api)
    head, first = hub.repo("alice/m").history()
    assert (head.oid, head.title, first.title) == (oid, "both", "initial commit")
    assert not head.files["README.md"].lfs
    assert head.files["README.md"].content == SMALL
    assert head.files["w.safetensors"].lfs
    assert head.files["w.safetensors"].content == LARGE
    assert len(hub.seen("POST .*/commit/main")) == 1


def test_files_come_back_whole_and_in_part(hub, api, tmp_path):
    upload(api)
    for name, content in (("README.md", SMALL), ("w.safetensors", LARGE)):
        with open(api.hf_hub_download("alice/m", name, cache_dir=tmp_path), "rb") as file:
            assert file.read() == content
        url = hf_hub_url("alice/m", name, endpoint=hub.url)
        part = get_session().get(url, headers={"Range": "bytes=2-5"}, follow_redirects=True)
        assert (part.status_code, part.content) == (206, content[2:6])
        assert part.headers["Content-Range"] == f"bytes 2-5/{len(content)}"
        beyond = get_session().get(url, headers={"Range": f"bytes={len(content)}-"}, follow_redirects=True)
        assert beyond.status_code == 416


def test_metadata_names_the_commit_and_the_content(hub, api, tmp_path):
    oid = upload(api)
    large = api.get_hf_file_metadata(url=hf_hub_url("alice/m", "w.safetensors", endpoint=hub.url))
    blob = hub.repo("alice/m").commit().files["w.safetensors"]
    assert (large.commit_hash, large.etag, large.size) == (oid, blob.sha256, len(LARGE))
    assert large.location.startswith("http://localhost:")
    paths = api.get_paths_info("alice/m", ["README.md", "w.safetensors", "absent"])
    assert {info.path: info.size for info in paths} == {"README.md": len(SMALL), "w.safetensors": len(LARGE)}
    assert (
        paths[0].blob_id == "4f9db0fb78c3eb1d603c16e0f8b189e1890149bc"
    )  # printf "# a card\n" | git hash-object --stdin


def test_tree_lists_folders_and_files(api):
    api.create_repo("alice/m")
    operations = [CommitOperationAdd(path, b"1") for path in ("a.json", "d/b.json", "d/e/c.json")]
    api.create_commit("alice/m", operations, commit_message="x")
    everything = {"a.json", "d", "d/b.json", "d/e", "d/e/c.json", ".gitattributes"}
    assert {entry.path for entry in api.list_repo_tree("alice/m", recursive=True)} == everything
    assert {entry.path for entry in api.list_repo_tree("alice/m")} == {"a.json", "d", ".gitattributes"}
    assert {entry.path for entry in api.list_repo_tree("alice/m", "d")} == {"d/b.json", "d/e"}
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("alice/m", "absent"))


def test_branches_tags_and_commits_pin_what_they_name(hub, api, tmp_path):
    api.create_repo("alice/m")
    first = commit(api, a_json=b"1")
    api.create_tag("alice/m", tag="v1")
    api.create_branch("alice/m", branch="try/it")
    second = commit(api, a_json=b"2")
    for revision, content in (("main", b"2"), ("v1", b"1"), ("try/it", b"1"), (first, b"1"), (second, b"2")):
        path = api.hf_hub_download("alice/m", "a.json", revision=revision, cache_dir=tmp_path)
        with open(path, "rb") as file:
            assert file.read() == content
        assert api.model_info("alice/m", revision=revision).sha == (first if content == b"1" else second)
    refs = api.list_repo_refs("alice/m")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": second, "try/it": first}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first}
    assert [row.commit_id for row in api.list_repo_commits("alice/m")][:2] == [second, first]
    with pytest.raises(RevisionNotFoundError):
        api.model_info("alice/m", revision="v9")


def test_delete_in_a_commit_and_delete_a_repository(hub, api):
    api.create_repo("alice/m")
    commit(api, a_json=b"1", b_json=b"2")
    api.create_commit("alice/m", [CommitOperationDelete("a.json")], commit_message="less")
    assert set(hub.repo("alice/m").commit().files) == {".gitattributes", "b.json"}
    with pytest.raises(EntryNotFoundError):
        api.create_commit("alice/m", [CommitOperationDelete("a.json")], commit_message="again")
    api.delete_repo("alice/m")
    assert not api.repo_exists("alice/m")


def test_what_may_not_be_read_does_not_exist(hub, api):
    api.create_repo("alice/m", private=True)
    assert api.model_info("alice/m").private
    for token in ("hf_bob", False):
        with pytest.raises(RepositoryNotFoundError) as caught:
            HfApi(hub.url, token=token).model_info("alice/m")
        assert caught.value.response.status_code == (401 if token is False else 404)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        HfApi(hub.url, token="hf_wrong").model_info("alice/m")


def test_who_may_write(hub, api):
    assert api.whoami()["name"] == "alice"
    assert api.create_repo("m").repo_id == "alice/m"
    assert api.create_repo("lab/m").repo_id == "lab/m"
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(hub.url).whoami("hf_wrong")
    refused = ((api, "bob/m"), (HfApi(hub.url, token="hf_alice_read"), "alice/n"))
    for client, name in refused:
        with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
            client.create_repo(name)
    with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
        commit(HfApi(hub.url, token="hf_bob"), a_json=b"1")
    assert len(hub.repo("alice/m").commits) == 1


def test_a_dataset_repository_is_another_one(hub, api, tmp_path):
    api.create_repo("alice/m")
    api.create_repo("alice/m", repo_type="dataset", private=True)
    api.create_commit("alice/m", [CommitOperationAdd("a.csv", b"1")], commit_message="x", repo_type="dataset")
    assert "a.csv" in hub.repo("alice/m", "datasets").commit().files
    assert "a.csv" not in hub.repo("alice/m").commit().files
    assert api.dataset_info("alice/m").private
    with open(api.hf_hub_download("alice/m", "a.csv", repo_type="dataset", cache_dir=tmp_path), "rb") as file:
        assert file.read() == b"1"


@pytest.mark.parametrize(
    ("card", "complaint"),
    [
        ("---\nlicense: my-own\n---\n", "license"),
        ("---\ntags: [1]\n---\n", "tags"),
        ("---\na: [\n---\n", "not YAML"),
        ("---\nmodel-index:\n- name: m\n  results:\n  - task: {type: t}\n---\n", "dataset.type"),
    ],
)
def test_invalid_card_metadata_is_refused_before_anything_is_sent(hub, api, card, complaint):
    api.create_repo("alice/m")
    with pytest.raises(ValueError, match=complaint):
        commit(api, README_md=card.encode())
    assert not hub.seen("preupload|commit")


def test_a_commit_is_all_or_nothing(hub, api):
    api.create_repo("alice/m")
    before = hub.repo("alice/m").commit()
    url, headers = f"{hub.url}/api/models/alice/m/commit/main", {"Authorization": "Bearer hf_alice"}
    header = '{"key": "header", "value": {"summary": "s"}}\n'
    file = '{"key": "file", "value": {"path": "a", "content": "MQ=="}}\n'
    pointer = '{"key": "lfsFile", "value": {"path": "w", "algo": "sha256", "oid": "%s", "size": 3}}\n' % ("0" * 64)
    answers = [
        get_session().post(url, headers=headers, content=body).status_code
        for body in (header + file + pointer, file, header + file + '{"key": "other", "value": {"path": "b"}}')
    ]
    assert answers == [400, 400, 400]
    assert hub.repo("alice/m").commit() is before
    parent = header.replace('"s"', '"s", "parentCommit": "%s"' % ("1" * 40))
    assert get_session().post(url, headers=headers, content=parent + file).status_code == 412
    assert get_session().post(url, headers=headers, content=header + file).status_code == 200
    assert hub.repo("alice/m").commit().files["a"].content == b"1"


def test_storage_takes_only_what_was_announced(hub, api):
    api.create_repo("alice/m")
    batch = {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 3}]}
    url, headers = f"{hub.url}/alice/m.git/info/lfs/objects/batch", {"Authorization": "Bearer hf_alice"}
    link = get_session().post(url, headers=headers, json=batch).json()["objects"][0]["actions"]["upload"]["href"]
    assert get_session().put(link, content=b"abc").status_code == 400
    assert get_session().post(f"{link}/verify", headers=headers).status_code == 404
    assert get_session().put(f"{hub.url}/storage/guessed", content=b"abc").status_code == 403
    assert not hub.repo("alice/m").lfs


def test_half_a_body_changes_nothing(hub, api):
    api.create_repo("alice/m")
    before = hub.repo("alice/m").commit()
    body = b'{"key": "header", "value": {"summary": "s"}}\n'
    head = "POST /api/models/alice/m/commit/main HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer hf_alice\r\n"
    for announced, status in ((len(body), b"200"), (len(body) + 1, b"")):
        with socket.create_connection(("127.0.0.1", int(hub.url.rpartition(":")[2]))) as connection:
            connection.sendall(f"{head}Content-Length: {announced}\r\nConnection: close\r\n\r\n".encode() + body)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1000)[9:12] == status
    assert hub.repo("alice/m").commit().parent is before


def test_one_server_error_is_survived(hub, api):
    hub.faults.append(Fault("POST .*/preupload", status=500))
    upload(api)
    assert [seen.status for seen in hub.seen("POST .*/preupload")] == [500, 200]


def test_one_dropped_upload_is_survived(hub, api):
    hub.faults.append(Fault("PUT /storage", after=100_000))
    upload(api)
    assert [seen.status for seen in hub.seen("PUT /storage")] == [None, 200]
    assert hub.repo("alice/m").commit().files["w.safetensors"].content == LARGE


@pytest.mark.parametrize("match", ["PUT /storage", "POST .*/commit/main"])
def test_a_client_killed_on_the_way_leaves_no_revision(hub, api, tmp_path, match):
    fault = Fault(match, stall=True, after=1)
    hub.faults.append(fault)
    process = start_python(UPLOAD, hub.environment(tmp_path))
    assert fault.reached.wait(60)
    process.kill()
    process.communicate(timeout=10)
    assert [commit.title for commit in hub.repo("alice/m").history()] == ["initial commit"]
    oid = upload(api)
    assert hub.repo("alice/m").commit().oid == oid


def test_a_failing_commit_changes_nothing(hub, api):
    hub.faults.append(Fault("POST .*/commit/main", status=503))
    with pytest.raises(HfHubHTTPError, match="503"):
        upload(api)
    assert [commit.title for commit in hub.repo("alice/m").history()] == ["initial commit"]
    upload(api)
    assert len(hub.seen("PUT /storage")) == 1, "the weights were there already"
