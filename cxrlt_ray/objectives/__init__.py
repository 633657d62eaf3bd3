"""What a stage of a trial is trained for: the batches it needs, its loss, its predictions and the metric that judges.

registry.py      Objective and @register_objective: the seam between training and what is trained
metric.py        a score's name and direction, for Ray Tune and Optuna
multilabel.py    findings as independent labels (losses.py: @register_loss)
distill.py       stored predictions of an ensemble or a trial beside the labels
noisy_student.py pseudo-labels in the place of missing labels
contrastive.py   images, texts and views of a study against each other: backbones for the stages that follow
pretraining.py   the networks of these; towers.py: their two sides; retrieval.py: their score; terms/: their losses
self_supervised.py  images alone, for vision transformers: dinov2, mae; their networks are dinov2_network, mae_network
"""
