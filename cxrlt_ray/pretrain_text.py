"""`python -m cxrlt_ray.pretrain_text GRAPH --out FOLDER`: a text encoder trained on a knowledge graph.

KAD's first stage (team B): names against definitions, and "head [SEP] relation" against tails, from a folder with
UMLS's tables, whose licence you must observe. Search spaces read the result by `text: FOLDER`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import model_validator

from cxrlt_ray import cli, output
from cxrlt_ray.config import Config
from cxrlt_ray.errors import UsageError
from cxrlt_ray.text.encoder_spec import FROZEN, MINILM, TextSpec, check

__all__ = ["PretrainTextRequest", "main", "run"]

LONGEST = 128  # tokens, as KAD


class PretrainTextRequest(Config):
    """The options of `pretrain_text`. Raises UsageError for a wrong one."""

    graph: Annotated[str, cli.argument("folder with MRCONSO.RRF, MRDEF.RRF and MRREL.RRF")]
    out: Annotated[str | None, cli.option("the new folder of the encoder")] = None
    encoder: Annotated[str, cli.option("initial encoder: a known name, a folder, a hub's OWNER/NAME")] = MINILM
    pooling: Annotated[str, cli.option("auto, cls, mean or last")] = "auto"
    tuning: Annotated[str, cli.option("tuned: all weights, or lora: adapters, merged into them at the end")] = "tuned"
    lora_rank: Annotated[int, cli.option("rank of adapters")] = 8
    lora_alpha: Annotated[int, cli.option("adapters are scaled by alpha / rank")] = 32
    lora_targets: Annotated[str | None, cli.option("layers with adapters, joined by +; default: the usual ones")] = None
    max_tokens: Annotated[int, cli.option("tokens after which a text is cut")] = LONGEST
    around_findings: Annotated[
        bool, cli.option("only concepts named by the findings, and their neighbours", "--around-findings")
    ] = False
    epochs: Annotated[int, cli.option("number of epochs")] = 3
    batch_size: Annotated[int, cli.option("pairs per step")] = 256
    lr: Annotated[float, cli.option("the highest learning rate")] = 2e-5
    seed: Annotated[int, cli.option("seed of the pairs' order")] = 0

    @model_validator(mode="after")
    def _check(self) -> PretrainTextRequest:
        if self.out is None:
            raise UsageError("--out FOLDER says where the encoder goes.")
        if self.tuning == FROZEN:
            raise UsageError("--tuning is tuned or lora: a frozen encoder learns nothing.")
        for option, value, fits, allowed in (
            ("--epochs", self.epochs, self.epochs >= 1, "1 or more"),
            ("--batch-size", self.batch_size, self.batch_size >= 4, "4 or more"),
            ("--lr", self.lr, self.lr > 0, "above 0"),
        ):
            if not fits:
                raise UsageError(f"{option} is {allowed}, not {value:g}.")
        check(self.spec)
        return self

    @property
    def spec(self) -> TextSpec:
        """The encoder and which of its weights train."""
        targets = tuple(self.lora_targets.split("+")) if self.lora_targets else ()
        return TextSpec(
            self.encoder,
            self.pooling,
            self.tuning,
            self.lora_rank,
            self.lora_alpha,
            lora_targets=targets,
            max_tokens=self.max_tokens,
        )


def run(request: PretrainTextRequest) -> Path:
    """Train a text encoder on a graph; returns its folder.

        from cxrlt_ray import pretrain_text
        pretrain_text.run(pretrain_text.PretrainTextRequest(graph="META", out="kebert", encoder="pubmedbert"))

    Started again with the same options, it continues after the last finished epoch. Raises UsageError for options,
    tables or an encoder that do not fit, CxrltError if the encoder is not available or the training fails.
    """
    from cxrlt_ray.text.descriptions import shipped
    from cxrlt_ray.text.graph import read_graph
    from cxrlt_ray.training.text_pretraining import Pretraining, pretrain_text

    wordings = [wording for description in shipped() for wording in description.wordings]
    graph = read_graph(request.graph, wordings if request.around_findings else None)
    cli.say(f"Graph: {len(graph.concepts):,} concepts, {len(graph.triples):,} relations")
    for table, count in graph.bad.items():
        cli.say(f"  {count:,} rows of {table} are not of its form, and left out")
    if request.around_findings and graph.unmatched:
        cli.say(f"  {len(graph.unmatched):,} of {len(wordings):,} names of findings are no concept's")
    out = Path(str(request.out))
    source = str(Path(request.graph).absolute())
    how = Pretraining(request.spec, source, request.epochs, request.batch_size, request.lr, seed=request.seed)
    pretrain_text(graph, how, out, cli.say)
    output.result(f"The encoder is in {out}: give it to a search space as `text: {out}`", [str(out)])
    return out


main = cli.command(
    PretrainTextRequest,
    run,
    """Train a text encoder on a knowledge graph in UMLS's tables, for `text: FOLDER` of search spaces.

    python -m cxrlt_ray.pretrain_text umls/META --out kebert --encoder pubmedbert --around-findings
    """,
)


if __name__ == "__main__":
    cli.run("pretrain_text")
