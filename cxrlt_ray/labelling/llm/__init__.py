"""Labels by a language model: one question a finding, asked of any server with OpenAI's API.

    options     what can be asked of `label --by llm`
    prompt      a report and a finding -> the request; the reply -> a label and the quote it stands on
    questions   which findings are asked of which report; equal texts are asked once
    plan        requests, tokens, time and cost, before the first request
    endpoint    one request and what came of it: an answer, a fault to try again, a refusal that ends the run
    pace        when the next request may be sent: retries, Retry-After, a rate
    cache       answers on disk, written as they come
    asker       many questions at a time
    actor       the same on Ray Data
    tally       what came of the questions, progress, when too much has failed
    outcome     answers -> labels, evidence, the audit, what has no answer
    labeller    all of these together: reports in, labels out

A report's text is in requests and in the memory of this process, and nowhere else: no message, no log, no file. (With
--cot the cache holds the model's reasoning, which may repeat it.)
"""
