"""Questions asked on Ray Data: an actor whose requests are bounded by its own semaphore.

Ray's own request stage (`ray.data.llm.HttpRequestProcessorConfig`, 2.60) keeps one request in flight, puts the whole
payload into its error and never sends a 500 again. Here a block of texts is a call of an async actor, CALLS of them run
at a time so that a slow text of one does not hold up the next, and all share one semaphore.

The actor is on the machine of the command, whose disk has the cache. It raises nothing, since Ray would print it with
its surroundings: what ends the run comes back among the counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cxrlt_ray.cluster.start import DATA_CPUS, data_context
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.labelling.llm.asker import Asker, Asking, TextQuestions, all_of
from cxrlt_ray.labelling.llm.cache import Journal
from cxrlt_ray.labelling.llm.tally import KEPT, Counts

CALLS = 4  # blocks under way
BLOCK = 4  # times `concurrency` questions in a block
MOST_BLOCKS = 4000


class AskingActor:
    """Asks the questions of a batch of texts; returns their counts as JSON."""

    def __init__(self, asking: Asking, folder: Path) -> None:
        self.asking, self.folder = asking, folder
        self._asker: Asker | None = None
        self._refusal = ""

    async def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """batch: of columns text and findings (JSON)."""
        counts = Counts(refusal=self._refusal)
        if not self._refusal:
            try:
                for part in await self._counts(batch):
                    counts.add(part)
            except CxrltError as error:
                counts.refusal = self._refusal = str(error)
            except Exception as error:
                counts.refusal = self._refusal = f"the process that asks has failed ({type(error).__name__}). {KEPT}."
        return {"counts": [json.dumps(counts.content())]}

    async def _counts(self, batch: dict[str, Any]) -> list[Counts]:
        if self._asker is None:
            self._asker = Asker(self.asking, Journal(self.folder))
            await self._asker.__aenter__()
        asker = self._asker
        texts = zip(batch["text"], batch["findings"], strict=True)
        return await all_of(
            asker.ask_text(TextQuestions(str(text), tuple(json.loads(findings)))) for text, findings in texts
        )


def ask_on_ray(asking: Asking, folder: Path, texts: Sequence[TextQuestions], report: Callable[[Counts], None]) -> None:
    """Ask all questions of `texts` by an actor of the Ray that has been started.

    report: is given what came of each block. Raises what it raises, and CxrltError where the actor is killed.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    data_context()
    questions = sum(len(text.findings) for text in texts)
    blocks = max(1, min(questions // (BLOCK * asking.concurrency), len(texts), MOST_BLOCKS))
    rows = [{"text": text.text, "findings": json.dumps(text.findings)} for text in texts]
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    dataset = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        AskingActor,
        fn_constructor_kwargs={"asking": asking, "folder": folder},
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=CALLS),
        num_cpus=DATA_CPUS,
        # an actor that starts anew would send what was answered again
        ray_remote_args_fn=lambda: {"scheduling_strategy": here, "max_restarts": 0, "max_task_retries": 0},
    )
    try:
        for row in dataset.iter_rows():
            report(Counts.of(json.loads(row["counts"])))
    except ray.exceptions.RayError:
        raise CxrltError(f"the process that asks was ended, for lack of memory perhaps. {KEPT}.") from None
