import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from reid_hub.data.safe_pickle import load_plain_pickle

PLAIN = {
    "names": ["a", "b"],
    "tuple": (1, -2.5, None, True, b"bytes"),
    "set": {1, 2},
    "ordered": OrderedDict(a=1),
    "numbers": np.arange(6).reshape(2, 3),
    "strings": np.array(["x", "yz"]),
    "objects": np.array(["x", 1], dtype=object),
    "scalar": np.int64(7),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_back(tmp_path, protocol):
    path = tmp_path / "plain.pkl"
    path.write_bytes(pickle.dumps(PLAIN, protocol=protocol))
    loaded = load_plain_pickle(path)
    for key, value in PLAIN.items():
        np.testing.assert_array_equal(loaded[key], value)
        assert type(loaded[key]) is type(value)


def test_a_pickle_of_python_2_and_numpy_1(tmp_path):
    path = tmp_path / "old.pkl"
    old = pickle.dumps({"marks": np.array([0, 1])}, protocol=2).replace(
        b"numpy._core.multiarray", b"numpy.core.multiarray"
    )
    path.write_bytes(old)
    assert load_plain_pickle(path)["marks"].tolist() == [0, 1]
    path.write_bytes(b"(dp0\nS'name'\np1\n(lp2\nS'0001_1.jpg'\np3\nas.")  # protocol 0: strings of Python 2
    assert load_plain_pickle(path) == {"name": ["0001_1.jpg"]}


class Runs:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("inside", ["plain", "array"])
@pytest.mark.parametrize("function", [os.mkdir, eval, getattr, np.load, np.lib.npyio.DataSource])
def test_nothing_is_run(tmp_path, function, inside):
    argument = str(tmp_path / "made")
    evil = Runs(function, f"__import__('os').mkdir({argument!r})" if function is eval else argument)
    value = np.array([evil], dtype=object) if inside == "array" else [evil]
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(ValueError, match=r"evil\.pkl holds more than plain lists.*it names .*could run code: refused"):
        load_plain_pickle(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps(PLAIN)[:-20]])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "cut.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cut\.pkl is a damaged pickle"):
        load_plain_pickle(path)
