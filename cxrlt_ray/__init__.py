"""Train many chest X-ray classifiers on a Ray cluster and stack the best of them.

A file here is a command, a folder is a room, and a room imports only from the rooms above it in this list:

    errors                         sentences
    output/                        what commands print: for people, for machines, or little
    cli config privacy             options, YAML files, what protects patients' data
    storage/                       files on a disk or in an object store, written completely or not at all
    cluster/                       starting and joining Ray, what the processes of one machine share
    data/                          images + labels -> manifest -> shards -> batches
    evaluation/                    metrics, scores of a submission, calibration, thresholds, the published tables
    phantom/                       the built-in cohort of drawn chest X-rays
    labelling/                     reports -> labels of studies, by rules or by a language model
    text/                          texts to learn from and prompts: encoders, reports, descriptions
    models/                        backbone + head + fusion of a study's views
    objectives/                    what is trained: batches, loss, predictions, metric
    runs/                          the files of a run: records, predictions
    tracking/                      curves in TensorBoard or Weights & Biases
    training/                      one trial: stages, epochs, resume state, inference
    selection/                     which trials to stack: arrays in, weights out
    search/                        many trials: the space, Optuna, Ray Tune, the plan
    pretraining/                   images without labels -> a backbone
    ensembling/                    the ensemble of a run or of tables, scored and written
    generation/                    generated images of rare findings: a diffusion model, a filter for its images
    reporting/                     tables for the console
    page/                          a run's report as one HTML page, its numbers, its model card
    doctor/                        checks of what would go wrong in a sweep
    sweep ensemble report predict evaluate cohort prepare trials      the commands
    label agree gold split         labels
    describe pretrain_text         descriptions of findings; a text encoder from a knowledge graph
    pretrain                       a backbone from images without labels
    generate                       images of rare findings
    pseudo                         pseudo-labels by an ensemble, for a student
"""

import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"] and sys.path:
    # `python -m cxrlt_ray.COMMAND` looks for modules in the working folder first, where a file numpy.py or csv.py would
    # be imported for the library; last, it still serves a checkout
    sys.path.append(sys.path.pop(0))
