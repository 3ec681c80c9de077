"""Load the pickle files of data sets without running code from them."""

import codecs
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from reid_hub.errors import ReIDError

# All globals of a pickle of plain containers and numpy values, with their modules in numpy 1 and 2, Python 2 and 3.
_RECONSTRUCT = np.array(0).__reduce__()[0]
_SCALAR = np.int64(0).__reduce__()[0]
_FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]
_ALLOWED = {
    "set": set,
    "frozenset": frozenset,
    "OrderedDict": OrderedDict,
    "encode": codecs.encode,
    "_reconstruct": _RECONSTRUCT,
    "scalar": _SCALAR,
    "_frombuffer": _FROM_BUFFER,
    "ndarray": np.ndarray,
    "dtype": np.dtype,
}
_MODULES = {
    "builtins": ("set", "frozenset"),
    "__builtin__": ("set", "frozenset"),
    "collections": ("OrderedDict",),
    "_codecs": ("encode",),
    "numpy": ("ndarray", "dtype"),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy.core.numeric": ("_frombuffer",),
    "numpy._core.numeric": ("_frombuffer",),
}


class _Refused(pickle.UnpicklingError):
    pass


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _MODULES.get(module, ()):
            return _ALLOWED[name]
        raise _Refused(f"it names {module}.{name}")


def load_plain_pickle(path: str | Path) -> Any:
    """Load a pickle that holds only lists, tuples, dicts, sets, strings, numbers and numpy arrays.

    Raises:
        ValueError: if it holds anything else, which could run code, or is damaged. No code is run.
    """
    try:
        with Path(path).open("rb") as file:
            return _PlainUnpickler(file, encoding="latin1").load()  # latin1: the files come from Python 2
    except _Refused as error:
        raise ReIDError(
            f"{path} holds more than plain lists, dicts, strings, numbers and arrays ({error}), which could run code: "
            "refused; get the file from the data set's authors"
        ) from error
    except (pickle.UnpicklingError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise ReIDError(f"{path} is a damaged pickle ({error}); copy it again from its source") from error
