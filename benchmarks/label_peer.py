"""negspaCy on texts, in an environment of its own: `python label_peer.py INPUT.json OUTPUT.json`, called by labels.py.

INPUT: {"patterns": EntityRuler's, "texts": [...], "timed": [...]}. OUTPUT: {"entities": [[label, negated] ...] a text,
"seconds": CPU seconds of the timed texts, "version": ...}.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import metadata
from pathlib import Path

import spacy
from negspacy.negation import Negex  # noqa: F401  (it registers the pipe "negex")
from negspacy.termsets import termset


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text())
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    nlp.add_pipe("entity_ruler").add_patterns(given["patterns"])
    nlp.add_pipe("negex", config={"neg_termset": termset("en_clinical").get_patterns()})
    nlp("No effusion.")
    entities = [[(e.label_, bool(e._.negex)) for e in doc.ents] for doc in nlp.pipe(given["texts"])]
    started = time.process_time()
    for _ in nlp.pipe(given["timed"]):
        pass
    seconds = time.process_time() - started
    version = f"negspacy {metadata.version('negspacy')}, spacy {metadata.version('spacy')}"
    Path(sys.argv[2]).write_text(json.dumps({"entities": entities, "seconds": seconds, "version": version}))


if __name__ == "__main__":
    main()
