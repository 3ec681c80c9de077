"""DatabaseIndex against the real database: a server process on loopback, and the embedded one."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from reid_hub.index import DatabaseIndex, GalleryIndex

pytest.importorskip("pymilvus", reason="needs reid-hub[database]")
METRICS = pytest.mark.parametrize("metric", ["cosine", "euclidean"])
ODD = ["it's", 'say "x"', "back\\slash", "new\nline", "ü/日本", "", "a" * 3000, "'] or key != '", '"] or key != "']


class Server:
    """`milvus-lite server` as a user starts it."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(self.folder)]
        with (self.folder.parent / "log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port)], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError((self.folder.parent / "log").read_text())

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("milvus") / "data")
    yield running
    running.kill()


@pytest.fixture(scope="module")
def shared(server):
    """A gallery that is only searched: 400 vectors around 20 centres, and the same one in memory."""
    rng = np.random.default_rng(0)
    vectors = np.repeat(rng.standard_normal((20, 24)), 20, 0) + 0.05 * rng.standard_normal((400, 24)) + 3
    camids = rng.integers(-1, 4, 400)
    ids, pair = [f"img/{row}.jpg" for row in range(400)], {}
    for metric in ("cosine", "euclidean"):
        pair[metric] = DatabaseIndex(server.uri, f"shared_{metric}", 24, metric=metric), GalleryIndex(24, metric=metric)
        for index in pair[metric]:
            index.add(vectors, ids, camids)
    return vectors, camids, pair


def small(server, name: str, **options) -> DatabaseIndex:
    index = DatabaseIndex(server.uri, name, 2, metric="euclidean", **options)
    index.add([[0, 0], [3, 4], [6, 8]], ["a", "b", "c"], [1, 2, -1], [{"n": 1}, {"n": [None, {"ü": 2.5}]}, {}])
    return index


@METRICS
@pytest.mark.parametrize("kind", ["clustered", "random"])
def test_answers_are_those_of_the_gallery_index(shared, metric, kind):
    vectors, camids, pair = shared
    database, gallery = pair[metric]
    queries = vectors[::25] if kind == "clustered" else np.random.default_rng(1).standard_normal((30, 24))
    for options in ({}, {"exclude_camids": camids[: len(queries)]}):
        expected, expected_ids = gallery.search(queries, 30, **options)
        distances, ids = database.search(queries, 30, **options)
        assert ids.tolist() == expected_ids.tolist()
        np.testing.assert_array_equal(distances, expected)
        assert distances.dtype == np.float32
    assert len(database) == len(gallery)


def test_the_answer_does_not_depend_on_how_many_queries_go_in_one_request(shared, monkeypatch):
    vectors, _, pair = shared
    whole = pair["cosine"][0].search(vectors[:9], 5)
    monkeypatch.setattr("reid_hub.index.database.SEARCH_VALUES", 2 * 37 * 24)
    parts = pair["cosine"][0].search(vectors[:9], 5)
    assert whole[1].tolist() == parts[1].tolist()
    np.testing.assert_array_equal(whole[0], parts[0])


def test_same_camera_filter_and_threshold_leave_inf_and_none(server):
    index = small(server, "filters")
    distances, ids = index.search([[0, 0], [0, 0]], 5, exclude_camids=[1, -1])
    assert ids.tolist() == [["b", "c", None], ["a", "b", "c"]]  # c, of unknown camera, is never left out
    assert distances.tolist() == [[5, 10, np.inf], [0, 5, 10]]
    distances, ids = index.search([[0, 0]], 5, max_distance=5)
    assert (distances.tolist(), ids.tolist()) == ([[0, 5, np.inf]], [["a", "b", None]])


def test_update_and_remove(server):
    index = small(server, "changes")
    index.update([[30, 40]], ["a"])
    index.update([[0, 1]], ["b"], [7], [{"new": True}])
    assert index.metadata(["b", "a"]) == [{"new": True}, {"n": 1}]
    assert index.search([[0, 0]], 3)[1].tolist() == [["b", "c", "a"]]
    assert index.search([[0, 0]], 3, exclude_camids=[1])[1].tolist() == [["b", "c", None]]  # a kept its camera
    assert index.search([[0, 0]], 3, exclude_camids=[7])[1].tolist() == [["c", "a", None]]
    index.remove(["b"])
    assert len(index) == 2
    assert ("a" in index, "b" in index, 5 in index) == (True, False, False)
    with pytest.raises(ValueError, match="not in the index: 'b'; nothing was changed"):
        index.update([[0, 0], [1, 1]], ["a", "b"])
    with pytest.raises(ValueError, match="not in the index: 'b'; nothing was removed"):
        index.remove(["a", "b"])
    assert index.search([[0, 0]], 1)[1].tolist() == [["c"]]


def test_ids_are_names_and_never_parts_of_a_filter(server):
    index = DatabaseIndex(server.uri, "odd", len(ODD), metric="euclidean")
    index.add(np.eye(len(ODD)), ODD)
    for row, id in enumerate(ODD):
        assert id in index
        assert index.search(np.eye(len(ODD))[row : row + 1], 1)[1].tolist() == [[id]]
    for gone, id in enumerate(ODD, 1):
        index.remove([id])
        assert len(index) == len(ODD) - gone


def test_many_ids_are_written_and_read_in_parts(server, monkeypatch):
    monkeypatch.setattr("reid_hub.index.database.WRITE_VALUES", 2 * 7)
    monkeypatch.setattr("reid_hub.index.database.KEYS", 7)
    index = DatabaseIndex(server.uri, "parts", 2, metric="euclidean")
    ids = [str(number) for number in range(40)]
    index.add(np.arange(80).reshape(40, 2), ids, metadata=[{"n": number} for number in range(40)])
    assert [entry["n"] for entry in index.metadata(ids[::-1])] == list(range(40))[::-1]
    assert index.search([[0, 1]], 40)[1].tolist() == [ids]
    index.remove(ids[:30])
    assert index.search([[0, 1]], 40)[1].tolist() == [ids[30:]]


def test_an_approximate_index_of_the_database_gives_exact_distances(server):
    rng = np.random.default_rng(0)
    vectors, ids = rng.standard_normal((300, 8)), [str(number) for number in range(300)]
    database, gallery = DatabaseIndex(server.uri, "graph", 8, index_type="HNSW"), GalleryIndex(8)
    for index in (database, gallery):
        index.add(vectors, ids)
    expected, names = gallery.search(vectors[:40], 10)
    distances, found = database.search(vectors[:40], 10)
    same = names == found
    assert same.mean() > 0.95
    np.testing.assert_array_equal(distances[same], expected[same])


def test_wrong_input_is_refused_and_nothing_is_stored(server):
    index = small(server, "refusals")
    for wrong, message in (
        (lambda: index.add([[1, 2], [3, 4]], ["d", "d"]), "'d' given more than once"),
        (lambda: index.add([[1, 2], [3, 4]], ["d", "a"]), "already in the index: 'a'"),
        (lambda: index.add([[1, np.nan]], ["d"]), "NaN or Inf: 'd'"),
        (lambda: index.add([[1, 2, 3]], ["d"]), r"shape \(N, 2\), got \(1, 3\)"),
        (lambda: index.add([[1, 2]], ["d", "e"]), "1 embeddings and 2 ids"),
        (lambda: index.add([[1, 2]], ["d"], [1.5]), "whole camera number"),
        (lambda: index.add([[1, 2]], ["d"], metadata=[{"x": float("nan")}]), "JSON"),
        (lambda: index.add([[1, 2]], ["d"], metadata=[{}, {}]), "one metadata mapping per id: 1, got 2"),
        (lambda: index.update([[np.inf, 2]], ["a"]), "NaN or Inf"),
        (lambda: index.search([[np.nan, 0]], 1), "NaN or Inf"),
        (lambda: index.search([[0, 0]], 0), "k must be at least 1"),
        (lambda: index.search([[0, 0]], 1, max_distance=-1), "max_distance"),
        (lambda: index.search(np.empty((0, 2)), 1), "at least one row"),
        (lambda: index.metadata(["a", "d"]), "not in the index: 'd'"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    assert len(index) == 3
    with pytest.raises(ValueError, match="the index is empty"):
        DatabaseIndex(server.uri, "nothing_in_it", 2).search([[1, 0]], 1)


def test_another_model_dimension_or_metric_is_refused(server):
    small(server, "owned", fingerprint="model-a")
    for options, message in (
        ({"fingerprint": "model-b"}, "has fingerprint='model-a', not 'model-b'"),
        ({"dim": 3}, "has dim=2, not 3"),
        ({"metric": "cosine"}, "has metric='euclidean', not 'cosine'"),
        ({"codec": "int8"}, "codec of a database"),
    ):
        with pytest.raises(ValueError, match=message):
            DatabaseIndex(server.uri, "owned", **{"metric": "euclidean", **options})
    again = DatabaseIndex(server.uri, "owned", metric="euclidean")
    assert (again.dim, again.fingerprint, len(again)) == (2, "model-a", 3)
    with pytest.raises(ValueError, match=r"no collection 'other'.*give dim"):
        DatabaseIndex(server.uri, "other")
    again._collection.client.create_collection("foreign", dimension=2)
    with pytest.raises(ValueError, match="not a gallery of reid_hub"):
        DatabaseIndex(server.uri, "foreign", 2)


def test_what_was_stored_survives_a_kill_of_the_server(tmp_path):
    server = Server(tmp_path / "data")
    try:
        index = small(server, "kept", fingerprint="model-a")
        server.kill()
        for ask in (lambda: index.search([[0, 0]], 3), lambda: DatabaseIndex(server.uri, "kept", timeout=2)):
            with pytest.raises(ConnectionError, match="no database answers") as caught:
                ask()
            assert "\n" not in str(caught.value)
        server.start()
        again = eventually(lambda: DatabaseIndex(server.uri, "kept", metric="euclidean", fingerprint="model-a"))
        assert again.search([[0, 0]], 3)[1].tolist() == [["a", "b", "c"]]
        assert again.metadata(["a"]) == [{"n": 1}]
        again.update([[3, 3]], ["b"])
        assert index.search([[3, 3]], 1)[1].tolist() == [["b"]]
        hasty = DatabaseIndex(server.uri, "kept", metric="euclidean", timeout=1)
        server.process.send_signal(signal.SIGSTOP)
        os.waitpid(server.process.pid, os.WUNTRACED)  # a busy machine stops it later than the signal is sent
        with pytest.raises(ConnectionError, match="did not answer within 1 s"):
            hasty.search([[0, 0]], 3)
    finally:
        server.kill()


def eventually(attempt, seconds: float = 20):
    """The client waits about a second between its attempts to reach a server that was away."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def test_the_folder_of_a_server_is_an_embedded_database_of_one_process(tmp_path):
    server = Server(tmp_path / "gallery.db")
    try:
        small(server, "gallery", fingerprint="model-a")
        with pytest.raises(RuntimeError, match="no other process may have it open") as caught:
            DatabaseIndex(tmp_path / "gallery.db")
        assert "\n" not in str(caught.value)
    finally:
        server.kill()
    embedded = DatabaseIndex(tmp_path / "gallery.db", metric="euclidean", fingerprint="model-a")
    embedded.add([[0.1, 0]], ["d"])
    assert embedded.search([[0, 0]], 4)[1].tolist() == [["a", "d", "b", "c"]]


def test_the_page_on_databases_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "vector_database.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec(page.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out.startswith("500 camera")


def test_addresses_and_names_are_checked():
    with pytest.raises(ValueError, match="uri must be like http://host:19530"):
        DatabaseIndex("gallery", dim=2)
    with pytest.raises(ValueError, match="collection must be of letters"):
        DatabaseIndex("http://127.0.0.1:1", "no-dash", 2)
    with pytest.raises(ConnectionError, match="no database answers"):
        DatabaseIndex("http://127.0.0.1:1", dim=2, timeout=1)


def test_absent_client_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(RuntimeError, match=r"pip install 'reid-hub\[database\]'"):
        DatabaseIndex("http://127.0.0.1:1", dim=2)
