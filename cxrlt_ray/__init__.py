"""Train many chest X-ray classifiers on a Ray cluster and stack the best of them.

The data's way through the package, one module a step:

    phantom/ readers/ -> manifest, cohort, splits   images + labels become one table
    decode, prepare, stream, node                   originals -> shards -> batches; what a machine's trials share
    models/, losses, device, train                  one trial
    search, plan, sweep, tuning, trials             many trials, their cost beforehand, and what they leave behind
    selection/, ensemble, score, predict            the best of them, stacked
    submission, metrics, evaluate                   the CSV and what it is worth
"""

__version__ = "0.1.0"
