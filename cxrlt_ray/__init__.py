"""Train many chest X-ray classifiers on a Ray cluster and stack the best of them.

The data's way through the package, one module a step:

    phantom/ readers/ -> manifest, cohort, mapping, splits     images + labels become one table, of several cohorts too
    decode, prepare, stream, node                              originals -> shards -> batches; what trials share
    sampling, augment, models/, losses, optimise, fit, train   one trial: its images, model, stages, folds
    trialconfig, search, spacefile, blueprint, plan            what trials there may be, built on paper, and their cost
    rundata, sweep, tuning, trials                             many trials, and what they leave behind
    selection/, ensemblefile, pool, ensemble, score, predict   the best of them, stacked
    submission, metrics, evaluate                              the CSV and what it is worth
"""

__version__ = "0.1.0"
