"""`python -m cxrlt_ray.describe FINDING ...`: drafts of descriptions by a language model, for a person to correct.

`--show` prints a finding's description and the prompts of each style, `--check` lists missing and unreviewed ones.
The package's own descriptions (descriptions/) need no model; drafts are for findings of your own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import model_validator

from cxrlt_ray import cli, output
from cxrlt_ray.config import Config
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.labelling.llm.options import LlmOptions, check_options, endpoint_of
from cxrlt_ray.storage import Store
from cxrlt_ray.text.descriptions import (
    CHALLENGE_FINDINGS,
    Description,
    as_yaml,
    check_finding,
    look_up,
)
from cxrlt_ray.text.prompts import STYLES, denial, prompts

__all__ = ["DescribeRequest", "main", "run"]

_OF_DRAFTS = ("url", "model", "key_variable", "parameters", "out", "cache", "timeout", "attempts")


class DescribeRequest(Config):
    """The options of `describe`. Raises UsageError for a wrong one."""

    findings: Annotated[list[str] | None, cli.argument("names of findings; --check alone needs none")] = None
    show: Annotated[bool, cli.option("print the findings' descriptions and prompts", "--show")] = False
    check: Annotated[bool, cli.option("list findings without a description or with only a draft", "--check")] = False
    descriptions: Annotated[str | None, cli.option("--show, --check: your own YAML file or folder, read first")] = None
    url: Annotated[str | None, cli.option("draft: the server, such as http://localhost:8000/v1")] = None
    model: Annotated[str | None, cli.option("draft: the model's name there")] = None
    key_variable: Annotated[str | None, cli.option("draft: the environment variable with the server's API key")] = None
    parameters: Annotated[str | None, cli.option("draft: additional fields of a request, as JSON")] = None
    out: Annotated[str, cli.option("draft: write the drafts to this new .yaml")] = "descriptions.yaml"
    cache: Annotated[str, cli.option("draft: folder in which replies are kept for the next run")] = (
        "answers/descriptions"
    )
    timeout: Annotated[float, cli.option("draft: timeout of a request in seconds")] = 120.0
    attempts: Annotated[int, cli.option("draft: attempts at a request if the server fails")] = 6

    @model_validator(mode="after")
    def _check(self) -> DescribeRequest:
        given = self.model_fields_set
        if self.show and self.check:
            raise UsageError("--show and --check are two things: give one.")
        if not self.findings and not self.check:
            raise UsageError("which findings? Give their names, such as Bulla 'Pleural Mass'.")
        if self.show or self.check:
            if others := [name for name in _OF_DRAFTS if name in given]:
                raise UsageError(f"{_option(others[0])} is for drafts: leave out --show and --check, or leave it out.")
            return self
        if self.descriptions is not None:
            raise UsageError("--descriptions goes with --show or --check.")
        for name in ("url", "model"):
            if not getattr(self, name):
                raise UsageError(
                    f"a draft needs {_option(name)}: the server's address, and the model's name there. --show prints "
                    "the description that there is."
                )
        if not self.out.endswith(".yaml"):
            raise UsageError(f"--out {self.out} must end in .yaml.")
        check_options(self.llm, by_llm=True)
        return self

    @property
    def llm(self) -> LlmOptions:
        """The options of the language model's server."""
        names = ("url", "model", "key_variable", "parameters", "timeout", "attempts", "cache")
        return LlmOptions(**{name: getattr(self, name) for name in names})


def run(request: DescribeRequest) -> None:
    """Show, check or draft descriptions.

        from cxrlt_ray import describe
        describe.run(describe.DescribeRequest(findings=["Bulla"], show=True))

    Raises UsageError for wrong files and for findings without a description, CxrltError if --check reports any or if
    findings are left without a draft.
    """
    findings = list(dict.fromkeys(request.findings or CHALLENGE_FINDINGS))
    if request.show:
        _show(look_up(findings, request.descriptions))
    elif request.check:
        _check(look_up(findings, request.descriptions))
    else:
        _draft(request, findings)


def _show(known: dict[str, Description | None]) -> None:
    """Print descriptions in the form of their files, then their prompts."""
    console = cli.console()
    for finding, description in known.items():
        if description is None:
            console.print(f"{finding}: no description", style="bold")
            continue
        console.print(as_yaml(description).rstrip(), soft_wrap=True)
        for style in STYLES:
            _print_prompts(f"prompts, style {style}", prompts(description, style))
        _print_prompts("denial", denial(description))
        console.print()


def _print_prompts(title: str, texts: tuple[str, ...]) -> None:
    cli.console().print("\n".join((f"{title}:", *(f"  {text}" for text in texts))), soft_wrap=True)


def _check(known: dict[str, Description | None]) -> None:
    """List the findings that lack a description or have only a draft. Raises CxrltError if there are any."""
    missing = [finding for finding, description in known.items() if description is None]
    drafts = [finding for finding, description in known.items() if description and not description.reviewed]
    for title, findings in (("No description", missing), ("Draft, to be read by a person", drafts)):
        if findings:
            cli.say(f"{title}: {', '.join(findings)}")
    if missing or drafts:
        raise CxrltError(
            f"{len(missing):,} of {len(known):,} findings have no description, {len(drafts):,} a draft: write or "
            "correct them; a draft counts once it says reviewed: true."
        )
    output.result(f"{len(known):,} findings have a description.", findings=len(known))


def _draft(request: DescribeRequest, findings: list[str]) -> None:
    """Request drafts and write them. Raises CxrltError if some findings are left without one."""
    from cxrlt_ray.text.drafts import TOKENS, draft

    for finding in findings:
        check_finding(finding)
    store, name = Store.holding(request.out)
    if store.exists(name):
        raise UsageError(f"--out {request.out} exists, and may hold corrections: give another name.")
    endpoint = endpoint_of(request.llm, TOKENS)
    encrypted = "" if endpoint.is_local or endpoint.is_encrypted else ", UNENCRYPTED"
    cli.say(f"Names of findings, and nothing of patients, are sent to {endpoint.host}{encrypted}")
    drafts = draft(findings, endpoint, Path(request.cache).absolute())
    if drafts.descriptions:
        header = f"# Drafts by {json.dumps(endpoint.model)}. Read and correct each, then set reviewed: true.\n"
        store.write(name, (header + as_yaml(*drafts.descriptions)).encode())
        output.result(
            f"{len(drafts.descriptions):,} drafts in {request.out}, by {drafts.requests:,} requests. A person reads "
            "and corrects each and sets reviewed: true; until then nothing uses them.",
            [request.out],
            drafts=len(drafts.descriptions),
        )
    if drafts.failed:
        why = "; ".join(f"{finding}: {reason}" for finding, reason in drafts.failed.items())
        raise CxrltError(f"{len(drafts.failed):,} of {len(findings):,} findings have no draft ({why})")


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}"


main = cli.command(
    DescribeRequest,
    run,
    """Show, check or draft descriptions of findings.

    python -m cxrlt_ray.describe Bulla --show
    python -m cxrlt_ray.describe --check
    python -m cxrlt_ray.describe "Pleural Mass" --url http://localhost:8000/v1 --model M --out drafts.yaml
    """,
)


if __name__ == "__main__":
    cli.run("describe")
