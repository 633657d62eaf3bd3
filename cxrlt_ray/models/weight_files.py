"""The tensors in a file of weights, whatever a training script has kept around them.

A .safetensors file, or one of torch.save, of which nothing but tensors and plain containers is ever made: classes that
torch does not know (argparse.Namespace, numpy's scalars, a callback) become empty shells, and no code of theirs runs.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from pickletools import genops
from typing import TYPE_CHECKING, Any

from cxrlt_ray.data.disguises import named
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store

if TYPE_CHECKING:
    import torch

ALONE = "save its weights alone: safetensors.torch.save_file(model.state_dict(), PATH)"
PICKLE, ZIP = b"\x80", b"PK"  # how a file of torch.save begins
ANSI = r"\x1b\[[0-9;]*m"
HARMFUL = {"eval", "exec", "compile", "open", "__import__", "input"}  # builtins that no weights ask for


class Shell:
    """Stands for an object of a class that is not made: it keeps the state that it had, and does nothing."""

    state: Any = None

    def __new__(cls, *args: object, **options: object) -> Any:
        """Takes what the class would have taken."""
        return super().__new__(cls)

    def __init__(self, *args: object, **options: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Items:
    """Stands for a class of mappings: what is made is a plain mapping."""

    def __new__(cls, *args: object, **options: object) -> Any:
        """An OrderedDict, of which torch takes items and a state."""
        return OrderedDict()


def read_tensors(uri: str) -> dict[str, torch.Tensor]:
    """All tensors of a file by their path in it, in order: `state_dict.module.conv1.weight`.

    Raises CxrltError where it cannot be read or holds none, and says why.
    """
    store, name = Store.holding(uri)
    content = store.read(name)
    if content[8:9] == b"{":  # after the length of the header
        return _safetensors(content, uri)
    if content and not content.startswith(ZIP) and (disguise := named(content)):
        raise CxrltError(f"{uri} is no file of weights but {disguise}.")
    value, names = _restored(content, uri)
    tensors = dict(_flattened(value))
    if not tensors:
        held = f" but objects of {_some(names)}" if names else ""
        raise CxrltError(f"{uri} holds no tensors{held}: {ALONE}.")
    return tensors


def unchunked(state: Mapping[str, torch.Tensor], own: Collection[str]) -> dict[str, torch.Tensor]:
    """Tensors under the names that DINOv2 publishes: its training code keeps blocks in chunks, `blocks.0.5.norm1`.

    The second number counts blocks through all chunks. own: names of the backbone; one that has chunks itself is left
    as it is. A file of a teacher alone may lack the mask's token, by which timm knows DINOv2's layout.
    """
    chunk = re.compile(r"^(blocks)\.\d+\.(\d+\.)")
    chunks = any(map(chunk.match, state)) and not any(map(chunk.match, own))
    names = {name: chunk.sub(r"\1.\2", name) if chunks else name for name in state}
    renamed = {names[name]: tensor for name, tensor in state.items()}
    if "register_tokens" in renamed and "mask_token" not in renamed:
        renamed["mask_token"] = renamed["register_tokens"].new_zeros(1)
    return renamed


def first_line(error: Exception) -> str:
    """What an error of torch says is wrong, without its advice and its colours."""
    plain = " ".join(re.sub(ANSI, "", str(error)).split())
    said = plain.rpartition("WeightsUnpickler error: ")[2]
    return re.split(r"(?<=[a-z)\]])\. ", said)[0].rstrip(".")[:200]


def _safetensors(content: bytes, uri: str) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except SafetensorError as error:
        raise CxrltError(f"{uri} is no whole file of safetensors ({error}): download or save it anew.") from None


def _restored(content: bytes, uri: str) -> tuple[Any, list[str]]:
    """What torch.save wrote, and the names of the classes in it that may not have been made."""
    import pickle

    if not zipfile.is_zipfile(io.BytesIO(content)) and not content.startswith(PICKLE):
        raise CxrltError(f"{uri} is neither a .safetensors file nor one of torch.save, or is cut short: fetch it anew.")
    names = sorted(set(_globals(content)))
    for module, _, kind in (name.rpartition(".") for name in names):
        if module == "builtins" and kind in HARMFUL:
            raise CxrltError(f"{uri} asks for {kind}(), which no weights need: do not trust it.")
    try:
        try:
            return _loaded(content, names, Shell), _strange(names)
        except pickle.UnpicklingError:
            return _loaded(content, names, Items), _strange(names)
    except pickle.UnpicklingError as error:
        held = f"it holds {_some(_strange(names))}" if _strange(names) else first_line(error)
        raise CxrltError(f"{uri} cannot be read safely ({held}): {ALONE}.") from None
    except Exception as error:
        if "TorchScript" in str(error):
            raise CxrltError(f"{uri} is a TorchScript archive: {ALONE}.") from None
        raise CxrltError(f"{uri} is damaged or cut short ({first_line(error)}): fetch or save it anew.") from None


def _loaded(content: bytes, names: list[str], stand_in: type) -> Any:
    """What torch.save wrote; those of the classes `names` that torch does not take for safe are `stand_in`s."""
    import torch

    plain = {f"builtins.{kind.__name__}": kind for kind in (list, set, frozenset, dict)}
    plain["collections.defaultdict"] = Items
    classes = {
        # numpy's objects have a state that no mapping takes
        name: plain.get(name) or type("StandIn", (Shell if name.startswith("numpy") else stand_in,), {})
        for name in names
    }
    with warnings.catch_warnings(), torch.serialization.safe_globals([(made, name) for name, made in classes.items()]):
        warnings.simplefilter("ignore")  # of TorchScript, which is refused
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _strange(names: list[str]) -> list[str]:
    """Those of the classes and functions `names` that are neither torch's nor containers."""
    return [name for name in names if not name.startswith(("torch.", "collections."))]


def _globals(content: bytes) -> Iterator[str]:
    """The names of classes and functions in the pickles of a file, which are disassembled and not run."""
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            pickles = io.BytesIO(archive.read(names[0])) if names else io.BytesIO()
    else:
        pickles = io.BytesIO(content)  # before torch 1.6: pickles one after the other, then the tensors' bytes
    for _ in range(5):
        try:
            for code, argument, _position in genops(pickles):
                if code.name == "GLOBAL":
                    yield re.sub(r"^__builtin__\.", "builtins.", str(argument).replace(" ", "."))
        except ValueError:  # no pickle follows
            return


def _flattened(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in nested mappings and in modules that were saved whole, by their path."""
    import torch

    if isinstance(value, torch.Tensor):
        yield path.removesuffix("."), value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flattened(inner, f"{path}{key}.")
    elif isinstance(value, Shell) and isinstance(value.state, Mapping):
        for kind in ("_parameters", "_buffers", "_modules"):
            yield from _flattened(value.state.get(kind), path)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
