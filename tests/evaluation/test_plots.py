import matplotlib
import numpy as np
import pytest
from PIL import Image

from reid_hub.evaluation import plots
from reid_hub.evaluation.metrics import evaluate_retrieval
from reid_hub.evaluation.plots import plot_cmc, plot_embedding_map, plot_rank_lists


def image(pid, camid):
    """An image whose every pixel says who it shows: found again in the rendered page."""
    return np.full((16, 8, 3), (10 * pid, 20 * camid, 77), np.uint8)


@pytest.fixture
def drawn(monkeypatch):
    """What `plot_rank_lists` puts into its cells, in order: (image's pid, colour, caption, mark)."""
    cells, draw = [], plots._draw_cell

    def record(axes, image, aspect, colour, caption, mark):
        cells.append((int(np.asarray(image)[0, 0, 0]) // 10, colour, caption, mark))
        draw(axes, image, aspect, colour, caption, mark)

    monkeypatch.setattr(plots, "_draw_cell", record)
    return cells


def rank_lists(path, query_camids=(0, 1), **options):
    # On a circle by angle: the nearest to a query is what the angles say.
    angles = np.radians([1, 2, 3, 4, 5, 6])
    gallery_pids, gallery_camids = np.array([1, 2, 1, -1, 1, 2]), np.array([0, 0, 1, 1, 2, 1])
    gallery = np.stack([np.cos(angles), np.sin(angles)], 1)
    return plot_rank_lists(
        path,
        [image(1, 0), image(2, 1)],
        [image(max(pid, 0), camid) for pid, camid in zip(gallery_pids, gallery_camids, strict=True)],
        np.array([[1.0, 0.0], [1.0, 0.0]]),
        gallery,
        np.array([1, 2]),
        gallery_pids,
        np.array(query_camids),
        gallery_camids,
        **options,
    )


def test_rank_list_leaves_out_junk_and_same_camera_and_marks_the_rest(tmp_path, drawn):
    rank_lists(tmp_path / "rank.png", k=4)
    right, wrong = plots.RIGHT, plots.WRONG
    distances = [f"{1 - np.cos(np.radians(angle)):.3f}" for angle in range(7)]
    assert drawn == [
        (1, plots.QUERY, "id 1\ncam 0", "query"),
        (2, wrong, f"id 2\ncam 0\n{distances[2]}", "1 ✗"),  # angle 1 is the query's own person and camera
        (1, right, f"id 1\ncam 1\n{distances[3]}", "2 ✓"),
        (1, right, f"id 1\ncam 2\n{distances[5]}", "3 ✓"),  # angle 4 is junk
        (2, wrong, f"id 2\ncam 1\n{distances[6]}", "4 ✗"),
        (2, plots.QUERY, "id 2\ncam 1", "query"),
        (1, wrong, f"id 1\ncam 0\n{distances[1]}", "1 ✗"),
        (2, right, f"id 2\ncam 0\n{distances[2]}", "2 ✓"),
        (1, wrong, f"id 1\ncam 1\n{distances[3]}", "3 ✗"),
        (1, wrong, f"id 1\ncam 2\n{distances[5]}", "4 ✗"),
    ]


def test_unknown_camera_leaves_nothing_out(tmp_path, drawn):
    rank_lists(tmp_path / "rank.png", query_camids=(-1, -1), k=2, metric="euclidean")
    assert [cell[3] for cell in drawn] == ["query", "1 ✓", "2 ✗", "query", "1 ✗", "2 ✓"]
    assert drawn[0][2] == "id 1"
    assert drawn[1][2] == f"id 1\ncam 0\n{2 * np.sin(np.radians(0.5)):.3f}"  # the chord of one degree


def test_list_shorter_than_k_has_empty_places(tmp_path, drawn):
    rank_lists(tmp_path / "rank.png", k=10)
    assert len(drawn) == 1 + 4 + 1 + 4


def test_rank_list_shows_the_images_themselves(tmp_path):
    path = rank_lists(tmp_path / "rank.png", k=4)
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    for colour in [(10, 0, 77), (20, 0, 77), (10, 20, 77), (10, 40, 77), (20, 20, 77)]:
        assert (pixels == colour).all(1).sum() > 500


def test_images_may_be_paths_and_pil_images_and_only_those_shown_are_read(tmp_path):
    paths = []
    for pid in (1, 2):
        paths.append(tmp_path / f"{pid}.png")
        Image.fromarray(image(pid, 0)).save(paths[-1])
    plot_rank_lists(
        tmp_path / "rank.png",
        [Image.fromarray(image(1, 1)).convert("L")],
        [str(paths[0]), paths[1], "this one is never opened.jpg"],
        [[1.0, 0.0]],
        [[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]],
        [1],
        [1, 2, 2],
        [0],
        [1, 1, 1],
        k=2,
    )
    assert (tmp_path / "rank.png").stat().st_size > 1000


def test_inputs_of_different_lengths_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"gallery: needs as many .* \[1, 2, 1, 1\]"):
        plot_rank_lists(
            tmp_path / "rank.png", [image(1, 0)], [image(1, 0)], [[1.0]], [[1.0], [2.0]], [1], [1], [0], [1]
        )
    assert not list(tmp_path.iterdir())


def retrieval(noise, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((8, 16))
    pids, camids = np.repeat(np.arange(8), 10), np.tile(np.arange(5), 16)
    vectors = centres[pids] + noise * rng.standard_normal((80, 16))
    return evaluate_retrieval(vectors[::5], vectors, pids[::5], pids, camids[::5], camids, max_rank=20)


def curves(figure):
    return {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}


@pytest.fixture
def figures(monkeypatch):
    """The matplotlib figures that were saved."""
    saved, save = [], matplotlib.figure.Figure.savefig

    def record(figure, *arguments, **options):
        saved.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", record)
    return saved


def test_cmc_curve_is_the_result_in_percent_inside_of_the_axes(tmp_path, figures):
    results = {"good": retrieval(0.5), "poor": retrieval(2.0)}
    plot_cmc(tmp_path / "cmc.png", results)
    lines = curves(figures[0])
    for name, result in results.items():
        label = f"{name} (mAP {100 * result.mAP:.1f}, rank-1 {100 * result.rank1:.1f})"
        np.testing.assert_allclose(lines[label], 100 * result.cmc)
    low, high = figures[0].axes[0].get_ylim()
    assert low <= min(100 * result.cmc[0] for result in results.values())
    assert high == 100
    assert figures[0].axes[0].get_xlim() == (1, 20)


def test_cmc_needs_a_result(tmp_path):
    with pytest.raises(ValueError, match="got 0"):
        plot_cmc(tmp_path / "cmc.png", {})


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_map_keeps_people_apart_and_shows_the_most_photographed(tmp_path, figures, method):
    rng = np.random.default_rng(0)
    sizes = [12, 3, 11, 10]
    pids = np.concatenate([np.repeat(np.arange(4), sizes), [-1] * 20])
    vectors = np.eye(6)[pids % 6] + 0.01 * rng.standard_normal((56, 6))
    path = plot_embedding_map(tmp_path / "map.png", vectors, pids, rng.integers(0, 2, 56), method=method, max_ids=3)
    assert path.stat().st_size > 1000
    groups = figures[0].axes[0].collections
    clouds = {}
    for group in groups:
        clouds.setdefault(tuple(group.get_facecolor()[0]), []).append(np.asarray(group.get_offsets()))
    clouds = [np.concatenate(parts) for parts in clouds.values()]
    assert [len(cloud) for cloud in clouds] == [12, 11, 10]
    for cloud in clouds:
        spread = np.linalg.norm(cloud - cloud.mean(0), axis=1).max()
        others = np.concatenate([other for other in clouds if other is not cloud])
        assert np.linalg.norm(others - cloud.mean(0), axis=1).min() > spread
    labels = [[text.get_text() for text in legend.get_texts()] for legend in figures[0].legends]
    assert labels == [["0", "2", "3"], ["0", "1"]]


def test_pca_is_the_plane_of_largest_variance():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((200, 5)) * [5, 1, 3, 0.1, 0.5]
    points = plots._pca(vectors, seed=0)
    values = np.linalg.eigvalsh(np.cov(vectors.T, bias=True))[::-1]
    np.testing.assert_allclose(points.var(0), values[:2])


def test_map_does_not_depend_on_global_random_state(tmp_path):
    rng = np.random.default_rng(0)
    vectors, pids = rng.standard_normal((30, 8)), np.repeat([0, 1, 2], 10)
    images = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002 on purpose
        images.append(plot_embedding_map(tmp_path / f"{seed}.png", vectors, pids, pids).read_bytes())
    assert images[0] == images[1]


def test_map_refuses_what_it_cannot_show(tmp_path):
    vectors = np.eye(4)
    with pytest.raises(ValueError, match="at least 4 images that are not junk, got 3"):
        plot_embedding_map(tmp_path / "map.png", vectors, [1, 1, 2, -1], [0] * 4)
    with pytest.raises(ValueError, match="did you mean 'tsne'"):
        plot_embedding_map(tmp_path / "map.png", vectors, [1] * 4, [0] * 4, method="tnse")
    with pytest.raises(ValueError, match="max_ids must be between 1 and 12, got 13"):
        plot_embedding_map(tmp_path / "map.png", vectors, [1] * 4, [0] * 4, max_ids=13)
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_an_earlier_image(tmp_path, monkeypatch):
    path = plot_cmc(tmp_path / "cmc.png", {"a": retrieval(1.0)})
    before = path.read_bytes()

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        plot_cmc(path, {"b": retrieval(2.0)})
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["cmc.png"]
