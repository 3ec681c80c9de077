"""Publishing a checkpoint folder, over HTTP: one commit, all or nothing, and clear words when it cannot be."""

import json
import os
import socket

import pytest

from reid_hub.hub.push import push_folder

from .client import run_python, start_python
from .conftest import small_model
from .minihub import Fault

PUSH = "import sys; from reid_hub.hub.push import push_folder; push_folder(sys.argv[1], 'alice/m')"


@pytest.fixture(autouse=True)
def logged_in(hub, log_in):
    log_in(hub.url)


def titles(hub, name: str = "alice/m", revision: str = "main") -> list[str]:
    return [commit.title for commit in hub.repo(name).history(revision)]


def test_one_commit_holds_the_whole_checkpoint(hub, checkpoint):
    (checkpoint / ".incomplete.bin").write_bytes(b"hidden files stay at home")
    (checkpoint / "checkpoint-10").mkdir()
    (checkpoint / "checkpoint-10" / "optimizer.pt").write_bytes(b"so do the training run's own files")
    commit = push_folder(checkpoint, "m", commit_message="first")
    head = hub.repo("alice/m").commit()
    assert (commit.oid, titles(hub)) == (head.oid, ["first", "initial commit"])
    sent = {path.name: path for path in checkpoint.glob("[!.]*.*")}
    assert set(head.files) == {*sent, ".gitattributes"}
    assert {name for name, blob in head.files.items() if blob.lfs} == {"model.safetensors"}
    for name in set(sent) - {"README.md"}:
        assert head.files[name].content == sent[name].read_bytes()
    assert b'from_pretrained("alice/m")' in head.files["README.md"].content


def test_the_same_again_makes_no_commit(hub, checkpoint):
    first = push_folder(checkpoint, "alice/m")
    assert push_folder(checkpoint, "alice/m").oid == first.oid
    assert len(hub.seen("PUT /storage")) == 1


def test_a_revision_is_a_branch_of_its_own(hub, checkpoint):
    push_folder(checkpoint, "alice/m", commit_message="one")
    small_model(seed=1).save_pretrained(checkpoint)
    push_folder(checkpoint, "alice/m", revision="v2", commit_message="two")
    assert titles(hub) == ["one", "initial commit"]
    assert titles(hub, revision="v2") == ["two", "one", "initial commit"]
    weights = [hub.repo("alice/m").commit(revision).files["model.safetensors"].content for revision in ("main", "v2")]
    assert weights[0] != weights[1]


def test_stale_weights_and_code_go_the_rest_stays(hub, checkpoint):
    (checkpoint / "old_head.py").write_text("")
    (checkpoint / "extra.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    (checkpoint / "ranks.png").write_bytes(b"image")
    push_folder(checkpoint, "alice/m")
    for name in ("old_head.py", "extra.safetensors", "ranks.png"):
        (checkpoint / name).unlink()
    push_folder(checkpoint, "alice/m", commit_message="less")
    files = set(hub.repo("alice/m").commit().files)
    assert files == {*os.listdir(checkpoint), "ranks.png", ".gitattributes"}
    assert titles(hub) == ["less", "Upload a person re-identification model", "initial commit"]


def test_private_means_private(hub, checkpoint):
    push_folder(checkpoint, "alice/hidden", private=True)
    assert hub.repo("alice/hidden").private
    push_folder(checkpoint, "alice/open")
    before = hub.repo("alice/open").commit()
    (checkpoint / "results.json").write_text("{}")
    with pytest.raises(RuntimeError, match=r"exists on .* and is public, but private=True"):
        push_folder(checkpoint, "alice/open", private=True)
    assert hub.repo("alice/open").commit() is before


def test_an_organization_and_the_models_own_push(hub):
    small_model(seed=0).push_to_hub("lab/m", private=True)
    assert hub.repo("lab/m").private
    assert len(titles(hub, "lab/m")) == 2
    assert {"model.safetensors", "config.json", "README.md", "preprocessor_config.json", "modeling_reid.py"} <= set(
        hub.repo("lab/m").commit().files
    )


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes = b"x"):
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, size: int):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def link_out(folder):
    (folder.parent / "secret.md").write_text("not to be published")
    (folder / "notes.md").symlink_to(folder.parent / "secret.md")


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (write("training_args.bin"), ValueError, "training_args.bin can run code"),
        (write("optimizer.pt"), ValueError, "optimizer.pt can run code"),
        (write("events.out.tfevents.1"), ValueError, "do not belong to a checkpoint: events.out.tfevents.1"),
        (link_out, ValueError, "notes.md.* is outside"),
        (remove("config.json"), FileNotFoundError, "no config.json"),
        (remove("README.md"), FileNotFoundError, "no README.md: write the card with"),
        (remove("preprocessor_config.json"), FileNotFoundError, "no preprocessor_config.json"),
        (remove("model.safetensors"), FileNotFoundError, "no .safetensors weights"),
        (remove("modeling_reid.py"), FileNotFoundError, "lacks code that it refers to: modeling_reid.py"),
        (remove("layers.py"), FileNotFoundError, "lacks code that it refers to: layers.py"),
        (cut("model.safetensors", 5000), ValueError, "not a complete safetensors file"),
        (write("model.safetensors", b"\x80\x04a pickle"), ValueError, "not a complete safetensors file"),
        (cut("config.json", 100), ValueError, "config.json is not valid JSON"),
        (write("results.json", b'{"metrics": '), ValueError, "results.json is not valid JSON"),
        (write("README.md", b"---\ntags: [\n---\n"), ValueError, "README.md has metadata that cannot be read"),
    ],
)
def test_an_unfit_folder_is_refused_before_anything_is_sent(hub, checkpoint, spoil, error, message):
    spoil(checkpoint)
    with pytest.raises(error, match=message):
        push_folder(checkpoint, "alice/m")
    assert hub.requests == []


def test_there_must_be_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"give the folder that model\.save_pretrained wrote"):
        push_folder(tmp_path / "absent", "alice/m")


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        (None, "alice/m", r"no token was given\. .*hf auth login"),
        ("hf_wrong", "alice/m", "the token was refused. Check HF_TOKEN"),
        ("hf_alice_read", "alice/m", "the token may not write there.*write token"),
        ("hf_alice", "bob/m", 'the token may not write there.*under "bob"'),
        ("hf_bob", "alice/m", "the token may not write there"),
    ],
)
def test_who_may_not_publish_is_told_why(hub, log_in, checkpoint, token, repo_id, message):
    log_in(hub.url, token)
    with pytest.raises(RuntimeError, match=f"could not publish .* as {repo_id} on {hub.url}: {message}"):
        push_folder(checkpoint, repo_id)
    assert not hub.seen("preupload|PUT|/commit/")


def test_a_repository_of_somebody_else_is_left_alone(hub, log_in, checkpoint):
    push_folder(checkpoint, "alice/m")
    before = hub.repo("alice/m").commit()
    small_model(seed=1).save_pretrained(checkpoint)
    log_in(hub.url, "hf_bob")
    with pytest.raises(RuntimeError, match="the token may not write there"):
        push_folder(checkpoint, "alice/m")
    assert hub.repo("alice/m").commit() is before


def test_a_name_that_cannot_be(checkpoint):
    with pytest.raises(ValueError, match="Repo id must"):
        push_folder(checkpoint, "alice/m/n")


def test_a_token_may_be_given(hub, log_in, checkpoint):
    log_in(hub.url, None)
    assert push_folder(checkpoint, "m", token="hf_bob").repo_url.repo_id == "bob/m"


def test_no_network(log_in, checkpoint):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        log_in(f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(RuntimeError, match=r"the connection failed .* Check the network and HF_ENDPOINT"):
            push_folder(checkpoint, "alice/m")


def test_offline(hub, checkpoint, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match=r"offline mode is on\. Unset HF_HUB_OFFLINE"):
        push_folder(checkpoint, "alice/m")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("POST .*/commit/", status=500), "the server failed, nothing was changed"),
        (Fault("POST .*/commit/", after=1), "the connection failed .* run the same again"),
        (Fault("PUT /storage", status=403), "the token may not write there"),
    ],
)
def test_a_failure_on_the_way_leaves_no_revision(hub, checkpoint, fault, message):
    hub.faults.append(fault)
    with pytest.raises(RuntimeError, match=message):
        push_folder(checkpoint, "alice/m")
    assert titles(hub) == ["initial commit"]
    push_folder(checkpoint, "alice/m")
    assert len(titles(hub)) == 2


def test_two_at_once_cannot_mix(hub, checkpoint):
    push_folder(checkpoint, "alice/m")
    small_model(seed=1).save_pretrained(checkpoint)
    other = b'{"key": "header", "value": {"summary": "the other one"}}'
    hub.faults.append(Fault("POST .*/preupload", call=lambda: hub.repo("alice/m").change("main", other)))
    with pytest.raises(RuntimeError, match=r"somebody else committed meanwhile\. Run the same again"):
        push_folder(checkpoint, "alice/m")
    assert titles(hub)[0] == "the other one"


def test_killed_in_the_middle_of_the_weights(hub, checkpoint, tmp_path):
    fault = Fault("PUT /storage", stall=True, after=100_000)
    hub.faults.append(fault)
    process = start_python(PUSH, hub.environment(tmp_path / "home"), str(checkpoint))
    assert fault.reached.wait(120)
    process.kill()
    process.communicate(timeout=10)
    assert titles(hub) == ["initial commit"]
    assert not hub.repo("alice/m").lfs
    push_folder(checkpoint, "alice/m")
    assert len(titles(hub)) == 2
    assert json.loads(hub.repo("alice/m").commit().files["config.json"].content)["model_type"] == "reid"


def test_a_server_without_xet_is_named(hub, checkpoint, tmp_path):
    environment = hub.environment(tmp_path / "home") | {"HF_HUB_DISABLE_XET": "0"}
    error = run_python(PUSH, environment, str(checkpoint), fails=True)
    assert "does not speak Xet. Set HF_HUB_DISABLE_XET=1" in error
    assert titles(hub) == ["initial commit"]
