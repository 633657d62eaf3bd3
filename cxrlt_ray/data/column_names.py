"""Names of columns: which are no findings, whoever reads them, and which are one name written in two ways."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from cxrlt_ray.data.manifest import META

OWN = (*META, "file", "row")  # columns that our own tables have beside findings
# what people keep beside findings, as `folded` writes it
_BESIDE = """
    dicomid imageid image imageindex imagename imagepath imagefile imgid img imgpath filename filepath fpath uid
    patientid patient pid subject study accessionnumber series seriesid seriesuid instanceid sopinstanceuid reportid
    viewposition viewcodesequencecodemeaning projection position frontallateral appa
    gender ethnicity patientsex patientgender patientage birthyear patientbirth followup
    index level0 id rowid rownumber number no rowno
    fold folds foldid kfold cvfold istrain isval isvalid istest isvalidation train val valid test validation traintest
    set subset partition phase development holdout
    dataset source site hospital institution center centre origin vendor manufacturer
    studydate studydatedicom studytime date time year month weight sampleweight
    height width rows columns bitsstored
    exclude excluded duplicate
"""
_NO_FINDINGS = frozenset(_BESIDE.split())


def folded(name: str) -> str:
    """A name without case, blanks and signs: 'Image ID', 'image_id' and 'ImageID' are one."""
    return re.sub(r"[\W_]+", "", name).casefold()


_NO_FINDINGS |= frozenset(map(folded, OWN))


def is_no_finding(name: str) -> bool:
    """Whether a column of this name is never a finding, whatever it holds: ids, splits, folds, an index ...

    >>> [is_no_finding(name) for name in ("Fold", "is_test", "Unnamed: 0", "", "Mass", "No Finding")]
    [True, True, True, True, False, False]
    """
    return name.strip() == "" or re.match(r"Unnamed: \d+", name) is not None or folded(name) in _NO_FINDINGS


def tidy(name: str) -> str:
    """A name in one line, without blanks and invisible marks at its ends; other control characters stay."""
    return re.sub(r"[ \xa0\r\n]+", " ", re.sub("[\ufeff\u200b]", "", name)).strip()


def renamed(columns: Sequence[str], known: Iterable[str], form: Callable[[str], str] = folded) -> dict[str, str]:
    """Columns that are `known` under another case, blanks or signs -> the known name; none where two would be.

    form: what two ways to write one name have in common.
    """
    count = Counter(map(form, columns))
    by_form = {form(name): name for name in known if name not in columns}
    return {
        column: by_form[form(column)]
        for column in columns
        if column and form(column) in by_form and count[form(column)] == 1
    }
