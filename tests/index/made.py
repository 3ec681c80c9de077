"""Vectors, names and answers that the tests of the index share."""

import hashlib
import json

import numpy as np

SEGMENT, SUMS, REMOVED = "segment-000001.safetensors", "segment-000001.sha256", "removed-000002.int64"
MEMBERS = [SEGMENT, SUMS, REMOVED, "manifest.json"]


def x(count, dim=8, seed=0):
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def names(count, prefix="p"):
    return [f"{prefix}{number}" for number in range(count)]


def answers(index):
    queries, excluded = x(6, seed=1), [0, 1, 2, -1, 0, 1]
    return [*index.search(queries, 20, exclude_camids=excluded), index.ids, index.metadata(index.ids)]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def edit_manifest(folder, **changes):
    path = folder / "manifest.json"
    manifest = {**json.loads(path.read_text()), **changes}
    del manifest["sha256"]
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(manifest))
