"""Plots of an evaluation: rank lists, CMC curves, a map of the embeddings."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from reid_hub.errors import ReIDError
from reid_hub.evaluation.metrics import JUNK, UNKNOWN_CAMERA, RetrievalResults
from reid_hub.evaluation.similarity import comparable
from reid_hub.files import atomic_file
from reid_hub.index.checks import to_numpy
from reid_hub.registry import lookup

RIGHT, WRONG, QUERY, FOUND = "#12813d", "#d1242f", "#3b4252", "#9aa3b2"
# The colour-blind-safe palette of Okabe and Ito, and more colours.
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9",
    "#7f3c8d", "#8c564b", "#4d4d4d", "#b5bd00", "#e7298a", "#1b4965",
)  # fmt: skip
MARKERS = "o^sDvP*X<>hp8d"
CELL_WIDTH = 0.78  # inches
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
}


def plot_rank_lists(
    path: str | Path,
    query_images: Sequence,
    gallery_images: Sequence,
    query_embeddings,
    gallery_embeddings,
    query_pids,
    gallery_pids,
    query_camids,
    gallery_camids,
    *,
    k: int = 10,
    metric: str = "cosine",
) -> Path:
    """Draw one row per query: the query and its `k` nearest gallery images, correct ones green, wrong ones red.

    As in `evaluate_retrieval`, junk (pid -1) and gallery images of the query's own person and camera are excluded, and
    ties rank by gallery position. Captions show identity, camera and distance (1 - cosine, or Euclidean).

    Args:
        query_images, gallery_images: sequences of PIL images, uint8 arrays (H, W, 3) or paths; only the images shown
            are read. All are drawn with the aspect ratio of the first query.
        query_embeddings, gallery_embeddings: (Q, D) and (G, D); about ten queries fit on a page.
        query_pids, gallery_pids, query_camids, gallery_camids: (Q,), (G,), (Q,), (G,) integers.

    Raises:
        ValueError: if the lengths differ, or the embeddings are invalid (see `evaluate_retrieval`).
    """
    query_pids, query_camids = to_numpy(query_pids), to_numpy(query_camids)
    gallery_pids, gallery_camids = to_numpy(gallery_pids), to_numpy(gallery_camids)
    _same_length(queries=(query_images, query_embeddings, query_pids, query_camids))
    _same_length(gallery=(gallery_images, gallery_embeddings, gallery_pids, gallery_camids))
    distances = _distances(query_embeddings, gallery_embeddings, metric)
    same_person = query_pids[:, None] == gallery_pids
    same_camera = (query_camids[:, None] == gallery_camids) & (query_camids[:, None] != UNKNOWN_CAMERA)
    distances[(same_person & same_camera) | (gallery_pids == JUNK)] = np.inf

    rows = []
    for row, image in enumerate(query_images):
        nearest = np.argsort(distances[row], kind="stable")[:k]
        answers = []
        for rank, item in enumerate(nearest[np.isfinite(distances[row, nearest])], start=1):
            right = same_person[row, item]
            caption = _caption(gallery_pids[item], gallery_camids[item], f"{distances[row, item]:.3f}")
            mark = f"{rank} {'✓' if right else '✗'}"
            answers.append((gallery_images[int(item)], RIGHT if right else WRONG, caption, mark))
        rows.append(((image, QUERY, _caption(query_pids[row], query_camids[row]), "query"), answers))
    return _draw_rows(path, rows, k)


def plot_answers(path: str | Path, queries: Sequence, answers: Sequence[Sequence], captions: Sequence[Sequence[str]]):
    """Draw one row per query: the query and the search results, nearest first; returns the path.

    Args:
        queries: Q images (PIL image, uint8 array (H, W, 3) or path).
        answers, captions: for each query its K results and their captions.
    """
    rows = []
    for query, found, texts in zip(queries, answers, captions, strict=True):
        marked = zip(found, texts, range(1, len(found) + 1), strict=True)
        rows.append(((query, QUERY, "", "query"), [(image, FOUND, text, str(rank)) for image, text, rank in marked]))
    return _draw_rows(path, rows, max(len(found) for found in answers))


def plot_attention(path: str | Path, images: Sequence, maps: Mapping[str, np.ndarray]) -> Path:
    """Draw one row per image: the image, then each map overlaid on it, from dark (minimum) to bright (maximum).

    Args:
        images: N images (PIL image, uint8 array (H, W, 3) or path).
        maps: by name, (N, h, w) non-negative values, resized to the images.

    Raises:
        ValueError: if a name does not have one map per image.
    """
    import matplotlib

    wrong = [name for name, values in maps.items() if np.ndim(values) != 3 or len(values) != len(images)]
    if wrong or not maps:
        raise ReIDError(f"each map must be (N, h, w) for {len(images)} images; wrong: {', '.join(wrong) or 'no maps'}")
    colours, rows = matplotlib.colormaps["inferno"], []
    for number, image in enumerate(images):
        base, overlays = _image(image), []
        for name, values in maps.items():
            heat = np.asarray(values[number], np.float32)
            heat = (heat - heat.min()) / max(float(np.ptp(heat)), 1e-12)
            heat = np.asarray(Image.fromarray(heat).resize(base.size, Image.Resampling.BICUBIC)).clip(0, 1)
            bright = 255 * colours(heat)[..., :3]
            overlays.append(((0.4 * np.asarray(base) + 0.6 * bright).astype(np.uint8), FOUND, "", name))
        rows.append(((base, QUERY, "", "image"), overlays))
    return _draw_rows(path, rows, len(maps))


def plot_cmc(path: str | Path, results: Mapping[str, RetrievalResults]) -> Path:
    """Draw the CMC curve of each named result, with mAP and rank-1 in the legend.

    Raises:
        ValueError: if there is no result, or more results than colours.
    """
    if not 1 <= len(results) <= len(COLOURS):
        raise ReIDError(f"between 1 and {len(COLOURS)} curves fit into a plot, got {len(results)}")
    with saved_figure(path, (5.2, 3.6)) as figure:
        axes = figure.add_subplot()
        for number, (name, result) in enumerate(results.items()):
            ranks = np.arange(1, len(result.cmc) + 1)
            label = f"{name} (mAP {100 * result.mAP:.1f}, rank-1 {100 * result.rank1:.1f})"
            marker = MARKERS[number % len(MARKERS)]
            style = {"color": COLOURS[number], "marker": marker, "markersize": 4, "linewidth": 1.5, "clip_on": False}
            axes.plot(ranks, 100 * result.cmc, label=label, markevery=_marked(len(ranks), number), **style)
        lowest = min(100 * result.cmc[0] for result in results.values())
        axes.set_ylim(max(0, 10 * np.floor((lowest - 3) / 10)), 100)
        axes.set_xlim(1, max(2, *(len(result.cmc) for result in results.values())))
        axes.set_xticks(sorted({1, *range(5, int(axes.get_xlim()[1]) + 1, 5)}))
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set(xlabel="rank", ylabel="queries with a true match by then (%)", title="Cumulative match characteristic")
        axes.legend(loc="best", fontsize=8)
    return Path(path)


def plot_embedding_map(
    path: str | Path,
    embeddings,
    pids,
    camids,
    *,
    method: str = "tsne",
    max_ids: int = len(COLOURS),
    seed: int = 0,
) -> Path:
    """Draw the L2-normalised embeddings in two dimensions: colour is the identity, the marker is the camera.

    Shows the `max_ids` identities with most images (ties: smaller pid first), without junk.

    Args:
        embeddings: (N, D).
        pids, camids: (N,) integers.
        method: "tsne" (neighbourhoods, van der Maaten & Hinton 2008) or "pca" (directions of largest variance).
        max_ids: at most 12, the number of colours.
        seed: seed of t-SNE.

    Raises:
        ValueError: for an unknown method, `max_ids` out of range, or fewer than 4 images to show.
    """
    if not 1 <= max_ids <= len(COLOURS):
        raise ReIDError(f"max_ids must be between 1 and {len(COLOURS)}, got {max_ids}: more colours look alike")
    project = lookup(PROJECTIONS, method, "projection")
    pids, camids = to_numpy(pids), to_numpy(camids)
    _same_length(images=(embeddings, pids, camids))
    unit, _ = comparable(embeddings, embeddings, "cosine")
    ids, counts = np.unique(pids[pids != JUNK], return_counts=True)
    ids = np.sort(ids[np.argsort(-counts, kind="stable")[:max_ids]])
    shown = np.isin(pids, ids)
    if shown.sum() < 4:
        raise ReIDError(f"a map needs at least 4 images that are not junk, got {shown.sum()}")
    points, pids, camids = project(unit[shown], seed), pids[shown], camids[shown]
    cameras = np.unique(camids)

    with saved_figure(path, (6.4, 4.8)) as figure:
        axes = figure.add_subplot()
        for number, pid in enumerate(ids):
            for camera, camid in enumerate(cameras):
                chosen = (pids == pid) & (camids == camid)
                style = {"marker": MARKERS[camera % len(MARKERS)], "color": COLOURS[number]}
                axes.scatter(*points[chosen].T, s=26, alpha=0.8, edgecolors="white", linewidths=0.4, **style)
        axes.set(xticks=[], yticks=[], title=f"{METHOD_TITLES[method]}: {len(points)} images of {len(ids)} people")
        for side in ("left", "bottom"):
            axes.spines[side].set_alpha(0.3)
        _legend(axes, "person", [(f"{pid}", "o", COLOURS[number]) for number, pid in enumerate(ids)], top=1.0)
        marks = [(_camera(camid), MARKERS[number % len(MARKERS)], "#777777") for number, camid in enumerate(cameras)]
        _legend(axes, "camera", marks, top=0.0)
    return Path(path)


def _tsne(vectors: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE

    perplexity = min(30, (len(vectors) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(vectors)


def _pca(vectors: np.ndarray, seed: int) -> np.ndarray:
    centred = vectors - vectors.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    return centred @ directions[:2].T


PROJECTIONS = {"tsne": _tsne, "pca": _pca}
METHOD_TITLES = {"tsne": "t-SNE of the embeddings", "pca": "Principal components of the embeddings"}


@contextmanager
def saved_figure(path: str | Path, size: tuple[float, float]) -> Iterator:
    """A matplotlib figure that is saved to `path` if the block succeeds; does not use pyplot's global state."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size)
        yield figure
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format=Path(path).suffix[1:] or "png")


def _draw_rows(path: str | Path, rows: Sequence[tuple], k: int) -> Path:
    """Draw (query cell, answer cells) per row; a cell is (image, frame colour, caption, mark)."""
    first = _image(rows[0][0][0])
    aspect, gap = first.height / first.width, 0.3
    captions = [caption for query, answers in rows for *_, caption, _ in (query, *answers)]
    text = 0.2 + 0.12 * max(len(caption.splitlines()) for caption in captions)  # inches: the mark and the caption
    size = (CELL_WIDTH * (k + 1 + gap), (CELL_WIDTH * aspect + text) * len(rows) + 0.4)
    with saved_figure(path, size) as figure:
        widths = [1, gap, *[1] * k]
        grid = figure.add_gridspec(len(rows), k + 2, width_ratios=widths, wspace=0.12, hspace=0.8 * text / aspect)
        for row, (query, answers) in enumerate(rows):
            for column, (image, colour, caption, mark) in zip([0, *range(2, k + 2)], [query, *answers], strict=False):
                _draw_cell(figure.add_subplot(grid[row, column]), image, aspect, colour, caption, mark)
    return Path(path)


def _draw_cell(axes, image, aspect: float, colour: str, caption: str, mark: str) -> None:
    axes.imshow(np.asarray(_image(image)), extent=(0, 1, 0, aspect), aspect="equal", interpolation="antialiased")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=2.5)
    axes.set_xlabel(caption, fontsize=6.5, labelpad=3, linespacing=1.2)
    axes.set_title(mark, fontsize=8, color=colour, pad=3, loc="center", fontweight="bold")


def _image(image) -> Image.Image:
    if isinstance(image, str | Path):
        image = Image.open(image)
    elif not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image))
    return image.convert("RGB")


def _distances(query_embeddings, gallery_embeddings, metric: str) -> np.ndarray:
    """(Q, G) float64: 1 - cosine, or Euclidean."""
    query, gallery = comparable(query_embeddings, gallery_embeddings, metric)
    if metric == "cosine":
        return 1 - query.astype(np.float64) @ gallery.astype(np.float64).T
    # `comparable` has checked them; its shift and scale would change the distances shown.
    query, gallery = (to_numpy(values).astype(np.float64) for values in (query_embeddings, gallery_embeddings))
    return np.stack([np.linalg.norm(gallery - row, axis=1) for row in query])


def _caption(pid: int, camid: int, *facts: str) -> str:
    camera = [] if camid == UNKNOWN_CAMERA else [f"cam {camid}"]
    return "\n".join([f"id {pid}", *camera, *facts])


def _camera(camid: int) -> str:
    return "unknown" if camid == UNKNOWN_CAMERA else str(camid)


def _marked(count: int, number: int) -> list[int]:
    """Ranks with a marker: rank 1, then every five, shifted per curve so that overlapping curves stay visible."""
    return [0, *range(4 + number % 5, count, 5)]


def _legend(axes, title: str, entries: Sequence[tuple[str, str, str]], top: float) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker=marker, color=colour, label=label, markersize=5)
        for label, marker, colour in entries
    ]
    corner = "upper left" if top else "lower left"
    place = {"loc": corner, "bbox_to_anchor": (1.01, top), "bbox_transform": axes.transAxes, "borderaxespad": 0}
    look = {"fontsize": 8, "title_fontsize": 9, "labelspacing": 0.3, "handletextpad": 0.2, "alignment": "left"}
    axes.figure.legend(handles=handles, title=title, **place, **look)  # a figure may have two legends, axes only one


def _same_length(**groups: Sequence) -> None:
    for name, values in groups.items():
        lengths = [len(value) for value in values]
        if len(set(lengths)) > 1 or not lengths[0]:
            raise ReIDError(f"{name}: needs as many images, embeddings, pids as camids, got {lengths}")
