"""The records of a run's ended trials in one file, for object stores: 10,000 of them in one request instead of 20,000.

It is a copy, and never believed against the store: it holds with each record the size and the time of its trial.json,
and what a listing of the trials says otherwise is read anew. The sweep writes it, readers only read it.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.runs.records import TrialRecord
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.store import as_json

RECORD = "trial.json"
INDEX = "trials.jsonl.gz"  # in the run's directory; a line a trial: [name, size, time of change in ns, record]


def read_index(folder: Store, names: Iterable[str]) -> dict[str, TrialRecord]:
    """The records that the index beside `folder`, a run's trials, holds of some trials as they are now."""
    beside, wanted = _beside(folder), set(names)
    if not beside.exists(INDEX):
        return {}
    records, files = {}, folder.files()
    try:
        for line in beside.read(INDEX).splitlines():
            name, size, changed, content = json.loads(line)
            if name in wanted and files.get(f"{name}/{RECORD}") == (size, changed):
                records[name] = TrialRecord.parse_json(content.encode(), f"{beside.uri}/{INDEX}")
    except (CxrltError, UsageError, ValueError, TypeError, AttributeError, OSError):
        return {}  # damaged, or of another version: the trials' own records are read
    return records


def write_index(folder: Store, records: Iterable[TrialRecord]) -> None:
    """Write the index of a run's trials in `folder` from the records of those that have ended.

    A record that the store has in another length was written meanwhile, or by an earlier version: it is left out.
    """
    files, lines = folder.files(), []
    for record in records:
        content = as_json(record.content())
        size, changed = files.get(f"{record.name}/{RECORD}", (-1, 0))
        if size == len(content):
            lines.append(json.dumps([record.name, size, changed, content.decode()]))
    _beside(folder).write(INDEX, gzip.compress("\n".join(lines).encode(), compresslevel=3))


def _beside(folder: Store) -> Store:
    return Store(folder.uri.rstrip("/").rpartition("/")[0])
