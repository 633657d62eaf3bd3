"""What can be asked of `label --by llm`: the fields that LabelRequest takes over, checked in one place."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from typing import Annotated, Any

from pydantic import SecretStr

from cxrlt_ray import cli
from cxrlt_ray.config import Config
from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.llm.endpoint import Endpoint, check_url

FIXED = ("model", "messages", "response_format", "stream", "n")  # fields of a request that --parameters may not set
TOKENS, TOKENS_COT = 200, 600  # of a reply at most, without reasoning and with it


class LlmOptions(Config):
    """Options of `label` for labels by a language model. With other labellers they are refused where they are given."""

    url: Annotated[str | None, cli.option("llm: the server, such as http://localhost:8000/v1")] = None
    model: Annotated[str | None, cli.option("llm: the model's name there")] = None
    key_variable: Annotated[str | None, cli.option("llm: the environment variable with the server's API key")] = None
    ask: Annotated[str, cli.option("llm: all findings of a report, or those mentioned by the rules")] = "all"
    audit: Annotated[float, cli.option("llm: with --ask mentioned, ask this share of the others too")] = 0.01
    cot: Annotated[bool, cli.option("llm: reason before the label", "--cot")] = False
    parameters: Annotated[str | None, cli.option("llm: additional fields of a request, as JSON")] = None
    seed: Annotated[int, cli.option("llm: seed of the model's sampling and of the audit")] = 0
    concurrency: Annotated[int, cli.option("llm: requests at a time")] = 64
    rate: Annotated[float | None, cli.option("llm: most requests per second")] = None
    timeout: Annotated[float, cli.option("llm: timeout of a request in seconds")] = 120.0
    attempts: Annotated[int, cli.option("llm: attempts at a request if the server fails")] = 6
    max_failed: Annotated[float, cli.option("llm: greatest share of questions without an answer")] = 0.02
    most_failed: Annotated[int, cli.option("llm: greatest number of questions without an answer")] = 1000
    retry_failed: Annotated[bool, cli.option("llm: ask again what failed in earlier runs", "--retry-failed")] = False
    cache: Annotated[str, cli.option("llm: folder in which answers are kept for the next run")] = "answers"
    plan: Annotated[bool, cli.option("llm: requests, tokens, time, cost; sends nothing", "--plan")] = False
    price_in: Annotated[float | None, cli.option("llm: price of a million prompt tokens, for --plan")] = None
    price_out: Annotated[float | None, cli.option("llm: price of a million reply tokens, for --plan")] = None


def check_options(options: LlmOptions, by_llm: bool) -> None:
    """Raise UsageError for options that are wrong, or that are given though no language model is asked."""
    if not by_llm:
        if given := sorted(options.model_fields_set & set(LlmOptions.model_fields)):
            raise UsageError(f"{_option(given[0])} goes with --by llm alone.")
        return
    for name in ("url", "model"):
        if not getattr(options, name):
            raise UsageError(f"--by llm needs {_option(name)}: the server's address, and the model's name there.")
    if options.ask not in ("all", "mentioned"):
        raise UsageError(f"--ask takes all or mentioned, not '{options.ask}'.")
    if "audit" in options.model_fields_set and options.ask == "all":
        raise UsageError("--audit goes with --ask mentioned: with all findings asked there is nothing to audit.")
    for name in ("audit", "max_failed"):
        if not 0 <= getattr(options, name) <= 1:
            raise UsageError(f"{_option(name)} is a share from 0 to 1, not {getattr(options, name):g}.")
    for name, least in (("concurrency", 1), ("attempts", 1), ("most_failed", 0), ("seed", 0)):
        if getattr(options, name) < least:
            raise UsageError(f"{_option(name)} is {least} or more, not {getattr(options, name)}.")
    for name in ("rate", "timeout"):
        if (value := getattr(options, name)) is not None and not 0 < value < float("inf"):
            raise UsageError(f"{_option(name)} is above 0, not {value:g}.")
    for name in ("price_in", "price_out"):
        if (value := getattr(options, name)) is not None and not (options.plan and 0 <= value < float("inf")):
            raise UsageError(f"{_option(name)} is a price of 0 or more, and goes with --plan.")
    if "://" in options.cache:
        raise UsageError("--cache is a folder of this machine, not a URI: an answer is written as it comes.")


def endpoint_of(options: LlmOptions, tokens: int | None = None) -> Endpoint:
    """The server that is asked. tokens: as of `parameters_of`.

    Raises UsageError, also where the variable for the key is empty or aiohttp missing.
    """
    if find_spec("aiohttp") is None:
        raise UsageError("to ask a language model needs aiohttp: pip install 'cxrlt-ray[llm]'.")
    assert options.url is not None
    assert options.model is not None
    key = None
    if options.key_variable is not None:
        value = os.environ.get(options.key_variable, "").strip()
        if not value:
            raise UsageError(
                f"--key-variable {options.key_variable}: there is no such environment variable, or no key in it."
            )
        key = SecretStr(value)
    return Endpoint(
        url=check_url(options.url),
        model=options.model,
        key=key,
        key_variable=options.key_variable,
        parameters=parameters_of(options, tokens),
        timeout=options.timeout,
        attempts=options.attempts,
    )


def parameters_of(options: LlmOptions, tokens: int | None = None) -> dict[str, Any]:
    """The fields of a request that decide how the model writes. tokens: of a reply at most, if no label is asked for.

    Raises UsageError.
    """
    most = tokens or (TOKENS_COT if options.cot else TOKENS)
    parameters = {"temperature": 0, "seed": options.seed, "max_tokens": most}
    if options.parameters is None:
        return parameters
    try:
        given = json.loads(options.parameters)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise UsageError('--parameters is no JSON object: write it as {"top_p": 1}, in single quotes for the shell.')
    if fixed := [name for name in FIXED if name in given]:
        raise UsageError(f"--parameters may not set '{fixed[0]}'.")
    return parameters | given


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}"
