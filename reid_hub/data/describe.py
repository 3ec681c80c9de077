"""Counts of a data set, including what cannot be used for training or evaluation, and digests of its content."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reid_hub.data.records import DISTRACTOR, JUNK, NO_CAMERA
from reid_hub.errors import MissingError


def camera_note(splits: Mapping[str, Any]) -> str | None:
    """Explain what missing camera ids mean for an evaluation on these splits; None if every camera is known.

    `splits` maps split names to data sets with a column camid; only query and gallery matter.
    """
    camids = [np.asarray(splits[split]["camid"]) for split in ("query", "gallery") if split in splits]
    unknown = sum(int((c == NO_CAMERA).sum()) for c in camids)
    if unknown == 0:
        return None
    total = sum(map(len, camids))
    some = "No test image has" if unknown == total else f"{unknown:,} of {total:,} test images do not have"
    return (
        f"{some} a camera id, so gallery images of the query's own person and camera cannot be excluded. "
        "Near-duplicates from the same camera count as hits: the figures are higher than those of a cross-camera "
        "protocol and not comparable with them."
    )


def describe_splits(splits: Mapping[str, Any]) -> dict[str, Any]:
    """Count images, identities and cameras, and what training or evaluation has to skip.

    For every split: images, identities (without junk and distractors), distractors (images of people in no query),
    cameras, and single_image_ids and single_camera_ids, the identities with one image or one known camera. In addition
    queries_without_true_match, which evaluation skips, and camera_note.

    `splits` maps split names to data sets with columns pid and camid.
    """
    columns = {name: (np.asarray(split["pid"]), np.asarray(split["camid"])) for name, split in splits.items()}
    query_pids = columns["query"][0] if "query" in columns else np.empty(0, np.int64)
    report: dict[str, Any] = {}
    for name, (pids, camids) in columns.items():
        people = pids != JUNK
        if name == "gallery" and DISTRACTOR not in query_pids:
            people &= pids != DISTRACTOR
        report[name] = {
            "images": len(pids),
            "identities": len(np.unique(pids[people])),
            "distractors": int((~np.isin(pids, query_pids)).sum()) if name == "gallery" else 0,
            "cameras": len(np.unique(camids[camids != NO_CAMERA])),
            **_singles(pids[people], camids[people]),
        }
    if {"query", "gallery"} <= columns.keys():
        report["queries_without_true_match"] = _unmatched(*columns["query"], *columns["gallery"])
    report["camera_note"] = camera_note(splits)
    return report


def _singles(pids: np.ndarray, camids: np.ndarray) -> dict[str, int]:
    known = camids != NO_CAMERA
    cameras_seen = np.unique(np.stack([pids[known], camids[known]]), axis=1)[0]
    return {
        "single_image_ids": int((np.unique(pids, return_counts=True)[1] == 1).sum()),
        "single_camera_ids": int((np.unique(cameras_seen, return_counts=True)[1] == 1).sum()),
    }


def _unmatched(
    query_pids: np.ndarray, query_camids: np.ndarray, gallery_pids: np.ndarray, gallery_camids: np.ndarray
) -> int:
    """Number of queries without a match in the gallery, other than from the query's own (known) camera."""
    codes = np.unique(np.concatenate([query_pids, gallery_pids]))
    width = int(max(query_camids.max(initial=0), gallery_camids.max(initial=0))) + 2
    query, gallery = np.searchsorted(codes, query_pids), np.searchsorted(codes, gallery_pids)
    images = np.bincount(gallery, minlength=len(codes))
    per_camera = np.bincount(gallery * width + gallery_camids + 1, minlength=len(codes) * width)
    own_camera = np.where(query_camids == NO_CAMERA, 0, per_camera[query * width + query_camids + 1])
    return int((images[query] - own_camera == 0).sum())


def digest_sample(split, count: int = 1000) -> str:
    """Digest of all paths of a split, in order, and of `count` of its images, evenly spaced.

    Raises:
        FileNotFoundError: if one of these images is missing.
    """
    rows = np.unique(np.linspace(0, len(split) - 1, min(count, len(split))).astype(int))
    told = [split["path"][:], digest_images(split.select(rows))]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def digest_images(split) -> str:
    """Digest of the encoded images of a split and of their paths below the root.

    It does not depend on the order of the rows, on other columns, or on where the data set was unpacked.

    Raises:
        FileNotFoundError: if an image is missing.
    """
    from datasets import Image as ImageFeature

    lines = []
    for row in split.select_columns(["image", "path"]).cast_column("image", ImageFeature(decode=False)):
        data = row["image"]["bytes"]
        if data is None:
            file = Path(row["image"]["path"])
            if not file.is_file():
                raise MissingError(f"image {file} does not exist; if it was moved, load the data set again")
            data = file.read_bytes()
        lines.append(f"{row['path']}\0{hashlib.sha256(data).hexdigest()}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]
