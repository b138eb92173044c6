"""State of any shape as JSON and tensors: what is in a rank's two files. Nothing that is read back can run code.

`encode` turns what state_dict() gives (dicts, lists, numbers, texts, tensors, arrays) into a value that JSON holds, and puts each tensor
aside under a name; `decode` is the inverse. A plain dict, list, number, text, true, false and None stand for themselves; all else is an
object {"$": kind, ...}. Floats keep their bits (JSON has their shortest decimal form, which is read back exactly).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import torch

from wagma.errors import InputError

TAG = "$"
Tensors = dict[str, torch.Tensor]
_ALLOWED = "None, bool, int, float, str, dict, list, tuple, set, Counter, torch.Tensor, numpy numbers and arrays"


class Encoder:
    """Collects the tensors of one rank, each once, however often it is referred to."""

    def __init__(self) -> None:
        self.tensors: Tensors = {}
        self._names: dict[int, str] = {}
        self._kept: list[torch.Tensor] = []  # a tensor that is gone could leave its id to another one
        self._memory: set[int] = set()

    def encode(self, value: Any, where: str) -> Any:
        """`value` as JSON. Raises InputError, naming `where` it is, for what neither JSON nor a tensor can hold."""
        match value:
            case None | bool() | str():
                return value
            case int() if type(value) is int:
                return value
            case float() if type(value) is float:
                return value if math.isfinite(value) else {TAG: "float", "value": repr(value)}
            case torch.Tensor():
                return {TAG: "tensor", "name": self._put(value, where)}
            case np.generic() | np.ndarray():
                return {TAG: "array", "name": self._put(self._from_numpy(np.asarray(value), where), where)}
            case Counter():
                return {TAG: "counter", "items": self._items(value, where)}
            case dict():
                if all(isinstance(key, str) and key != TAG for key in value):
                    return {key: self.encode(item, f"{where}[{key!r}]") for key, item in value.items()}
                return {TAG: "dict", "items": self._items(value, where)}
            case list():
                return [self.encode(item, f"{where}[{place}]") for place, item in enumerate(value)]
            case tuple() if type(value) is tuple:
                return {TAG: "tuple", "items": self.encode(list(value), where)}
            case set():
                return {TAG: "set", "items": self.encode(list(value), where)}
        raise InputError(f"{where} is a {type(value).__name__}: a checkpoint holds {_ALLOWED}")

    def _items(self, value: dict[Any, Any], where: str) -> list[list[Any]]:
        return [
            [self.encode(key, f"{where}, key {key!r}"), self.encode(item, f"{where}[{key!r}]")] for key, item in value.items()
        ]

    def _put(self, tensor: torch.Tensor, where: str) -> str:
        if id(tensor) not in self._names:
            self._names[id(tensor)] = where
            self._kept.append(tensor)
            self.tensors[where] = storable(tensor, where, self._memory)
        return self._names[id(tensor)]

    @staticmethod
    def _from_numpy(array: Any, where: str) -> torch.Tensor:
        try:
            return torch.from_numpy(array.copy())
        except TypeError as error:
            raise InputError(f"{where} is an array of {array.dtype}: a checkpoint holds numbers only") from error


def storable(tensor: torch.Tensor, where: str, memory: set[int]) -> torch.Tensor:
    """The tensor's values in host memory, contiguous and alone in it, as the file format wants them. memory: what is taken, and grows."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise InputError(f"{where} is a tensor of layout {tensor.layout}: a checkpoint holds dense ones")
    values = tensor.detach().cpu().contiguous()
    alone = values.untyped_storage().nbytes() == values.numel() * values.element_size()
    if not alone or values.data_ptr() in memory:
        values = values.clone()
    memory.add(values.data_ptr())
    return values


def decode(value: Any, tensors: Tensors) -> Any:
    """What was encoded. Raises ValueError, KeyError or TypeError for what was not."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match value.get(TAG):
        case None:
            return {key: decode(item, tensors) for key, item in value.items()}
        case "float":
            return float(value["value"])
        case "tensor":
            return tensors[value["name"]]
        case "array":
            array = tensors[value["name"]].numpy()
            return array if array.ndim else array[()]
        case "counter":
            return Counter({decode(key, tensors): decode(item, tensors) for key, item in value["items"]})
        case "dict":
            return {decode(key, tensors): decode(item, tensors) for key, item in value["items"]}
        case "tuple":
            return tuple(decode(value["items"], tensors))
        case "set":
            return set(decode(value["items"], tensors))
    raise ValueError(f"a value of unknown kind {value[TAG]!r}")


def random_states() -> dict[str, Any]:
    """Where the global generators of Python, numpy and torch stand in this process."""
    version, words, gauss = random.getstate()
    states: dict[str, Any] = {
        "python": (version, np.array(words, np.int64), gauss),
        "numpy": np.random.get_state(),  # noqa: NPY002 - whatever the program draws from
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = torch.cuda.get_rng_state()  # of the rank's own device: asking the others would set them up
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Put the generators where they stood."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
