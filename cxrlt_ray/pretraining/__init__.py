"""Self-supervised pretraining: images without labels -> the weights of a backbone, and a record of whose images.

request.py     what is asked: the options of `python -m cxrlt_ray.pretrain`
settings.py    pretraining/NAME.yaml and --set -> a TrialConfig and what is monitored
cohorts.py     directories, with or without labels -> one manifest of training images and of monitored ones
measures.py    effective rank, k-NN, and whether a run has collapsed; arrays in, numbers out
monitor.py     measures a network while it is trained
course.py      one model's way through the stages, entered where an earlier process left it
launch.py      in this process, or in a group of Ray Train's workers
plan.py        what it will take
"""
