"""Asking on Ray Data: batches share one semaphore, what ends the run comes back as a count, answers go to the cache."""

from __future__ import annotations

import asyncio
import json
import pickle

import pytest
from chat_server import ChatServer, finding_of, reads
from pydantic import SecretStr
from test_llm_labeller import NAMES, RULES, SECRET, status

from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.llm import prompt
from cxrlt_ray.labelling.llm.actor import AskingActor, ask_on_ray
from cxrlt_ray.labelling.llm.asker import Asked, Asking, TextQuestions
from cxrlt_ray.labelling.llm.cache import read_answers
from cxrlt_ray.labelling.llm.endpoint import Endpoint
from cxrlt_ray.labelling.llm.tally import Ceiling, Counts, Tally

TEXTS = [f"{SECRET}. Edema {k}." for k in range(40)]


def asking(url, concurrency=8):
    rules = RULES.findings
    asked = tuple(Asked(prompt.question(rule), prompt.digest(rule, "m", False, {})) for rule in rules)
    return Asking(Endpoint(url=url, model="m", key=SecretStr(SECRET)), asked, concurrency=concurrency)


def labels_in(folder, one):
    answers = read_answers(folder)
    keys = [prompt.key(prompt.text_digest(text), asked.digest) for text in TEXTS for asked in one.asked]
    return [answer and answer.label for answer in answers.get(keys)]


def called(actor, *batches):
    """Counts of batches that an actor is given at a time, in one event loop as Ray Data has it."""

    async def all_batches():
        return await asyncio.gather(*(actor(batch) for batch in batches))

    return [Counts.of(json.loads(out["counts"][0])) for out in asyncio.run(all_batches())]


def batch(texts):
    return {"text": texts, "findings": [json.dumps([0, 1, 2, 3]) for _ in texts]}


def test_batches_at_a_time_share_one_semaphore_and_one_cache(tmp_path):
    async def slow(body, number):
        await asyncio.sleep(0.02)
        return await reads(body)

    with ChatServer(slow) as server:
        actor = AskingActor(asking(server.url), tmp_path)
        counts = called(actor, batch(TEXTS[:20]), batch(TEXTS[20:]))
        assert [part.answered for part in counts] == [80, 80]
        assert server.most == 8
        assert labels_in(tmp_path, actor.asking) == ["present", *["not_mentioned"] * 3] * 40


def test_a_refusal_comes_back_as_a_count_and_nothing_more_is_sent(tmp_path):
    async def answer(body, number):
        return status(401)(body)

    with ChatServer(answer) as server:
        actor = AskingActor(asking(server.url), tmp_path)
        counts = called(actor, batch(TEXTS[:20]), batch(TEXTS[20:]))
        assert called(actor, batch(TEXTS))[0].refusal
        assert len(server.bodies) <= 8  # those that were under way
    tally = Tally(160, 160, {}, Ceiling(1.0, 1000), 16, "host", print)
    with pytest.raises(UsageError, match="refuses access") as caught:
        tally.add(counts[0])
    assert SECRET not in str(caught.value)


def test_neither_key_nor_text_is_in_what_is_printed_of_the_actors_arguments():
    one = asking("http://localhost/v1")
    assert SECRET not in repr(one)
    assert SECRET not in repr(pickle.loads(pickle.dumps(one)))


def test_questions_on_ray_are_answered_once_with_many_requests_at_a_time(ray, tmp_path):
    async def slow(body, number):
        await asyncio.sleep(0.05)
        return await reads(body)

    counts = Counts()
    with ChatServer(slow) as server:
        one = asking(server.url, concurrency=16)
        ask_on_ray(one, tmp_path, [TextQuestions(text, (0, 1, 2, 3)) for text in TEXTS], counts.add)
        assert sorted(map(finding_of, server.bodies)) == sorted([*NAMES] * 40)
        assert 8 < server.most <= 16
    assert (counts.answered, counts.requests) == (160, 160)
    assert labels_in(tmp_path, one) == ["present", *["not_mentioned"] * 3] * 40
