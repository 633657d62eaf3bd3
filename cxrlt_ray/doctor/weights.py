"""Whether a trial on this machine will have its weights, without loading them: that is what a sweep does, once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cxrlt_ray import cli
from cxrlt_ray.doctor.check import reason
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store

if TYPE_CHECKING:
    from cxrlt_ray.models import ModelSpec

HUB_FILES = "model.safetensors pytorch_model.bin"
HUB_SECONDS = 5.0


@dataclass(frozen=True)
class Want:
    """Something that a trial reads. ways: to have it, as (kind, where) of WAYS; the first that works counts."""

    name: str
    ways: tuple[tuple[str, str], ...]
    mend: str = ""


def wants(specs: Sequence[ModelSpec], findings: Sequence[str] = ()) -> Iterator[Want]:
    """What trials of these models read, in the order of models/weights.py; label embeddings too.

    Raises UsageError where label embeddings lack one of `findings`.
    """
    if not specs:
        return
    from cxrlt_ray.models import label_embeddings
    from cxrlt_ray.models.weights import OFFLINE, packaged

    mend = "share the hub's cache among the machines (HF_HOME), or give a file by `checkpoint: PATH`"
    for spec in {(spec.backbone, spec.checkpoint): spec for spec in specs if spec.pretrained}.values():
        yield Want(spec.backbone, _ways(spec), f"{OFFLINE}, or {mend}" if packaged(spec.backbone) else mend)
    for uri in dict.fromkeys(spec.queries for spec in specs if spec.queries):
        if findings:
            label_embeddings.read(uri, findings)
        yield Want("label embeddings", (("file", uri),), "put the file where every machine sees it")


def _ways(spec: ModelSpec) -> tuple[tuple[str, str], ...]:
    import timm

    from cxrlt_ray.models.weights import packaged

    if spec.checkpoint:
        return (("file", spec.checkpoint),)
    by, _, name = spec.backbone.partition(":") if ":" in spec.backbone else ("", "", spec.backbone)
    if by == "xrv":
        return (("xrv", name),)
    if by == "local-dir" or (by == "transformers" and Path(name).is_dir()):
        return (("file", f"{name}/config.json"),)
    if by:
        return (("hub", f"{name} {HUB_FILES}"),)
    about, package = timm.get_pretrained_cfg(name), packaged(name)
    hub = [("hub", f"{about.hf_hub_id} {about.hf_hub_filename or HUB_FILES}")] if about and about.hf_hub_id else []
    return (*([("package", package)] if package else []), *hub)


def met(wanted: Sequence[Want]) -> list[tuple[str, bool, str, str]]:
    """For each want its name, whether it is met here, how or why not, and how to mend that."""
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(_met, wanted))
    return [(want.name, *each, want.mend) for want, each in zip(wanted, found, strict=True)]


def _met(want: Want) -> tuple[bool, str]:
    reasons = []
    for kind, where in want.ways:
        try:
            return True, WAYS[kind](where)
        except Exception as error:
            reasons.append(reason(error))
    return False, "; ".join(reasons) or "timm has no pretrained weights of it"


def cache() -> str:
    """Why the hub's cache cannot be written here; "" where it can."""
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        os.makedirs(HF_HUB_CACHE, exist_ok=True)
        tempfile.TemporaryFile(dir=HF_HUB_CACHE).close()
    except OSError as error:
        return f"{HF_HUB_CACHE}: {error.strerror}"
    return ""


def _file(where: str) -> str:
    folder, _, name = where.rpartition("/")
    if not Store(folder or ("/" if where.startswith("/") else ".")).exists(name):
        raise CxrltError(f"{where} is not there")
    return "a file"


def _package(where: str) -> str:
    if find_spec(where) is None:
        raise CxrltError(f"package {where} is not installed")
    return f"package {where}"


def _hub(where: str) -> str:
    """where: OWNER/NAME and the files of which one is enough, with blanks between."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    repo, *files = where.split()
    if any(isinstance(try_to_load_from_cache(repo, name), str) for name in files):
        return "in the hub's cache"
    why = ""
    for name in files:
        try:
            about = get_hf_file_metadata(hf_hub_url(repo, name), timeout=HUB_SECONDS)
            return f"from the hub, {cli.size(about.size or 0)} {AT_FIRST}"
        except Exception as error:
            why = why or reason(error)
    raise CxrltError(f"{repo} is not in the hub's cache, and the hub does not give it ({why})")


def _xrv(where: str) -> str:
    """where: a name of torchxrayvision's weights."""
    from urllib.request import Request, urlopen

    from cxrlt_ray.models.hub import need

    library = need("torchxrayvision", f"xrv:{where}")
    url = library.models.model_urls[where]["weights_url"]
    if Path(library.utils.get_cache_dir(), url.rpartition("/")[2]).exists():
        return "in torchxrayvision's cache"
    with urlopen(Request(url, method="HEAD"), timeout=HUB_SECONDS) as answer:
        return f"from torchxrayvision, {cli.size(int(answer.headers.get('Content-Length', 0)))} {AT_FIRST}"


AT_FIRST = "at its first use"
WAYS: dict[str, Callable[[str], str]] = {"file": _file, "package": _package, "hub": _hub, "xrv": _xrv}
