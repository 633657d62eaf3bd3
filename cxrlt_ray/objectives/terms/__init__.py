"""Loss terms of contrastive and grounded pretraining: pure functions of tensors, which objectives add up.

gather.py      the features of all workers, with their gradients, and means over all workers' rows
contrast.py    images and texts: InfoNCE as in CLIP, the sigmoid loss of SigLIP
views.py       images and images: NT-Xent of SimCLR, MoCo with its queue
local.py       patches and words: SLA
entities.py    two texts of a concept: KAD
location.py    presence and place of findings: MedKLIP
grounding.py   phrases, attention maps and boxes: team I

A worker calls a term with its own rows, and the term's value is that worker's part: DistributedDataParallel's mean over
workers of loss and gradients is what one worker has on the joined batch, also where workers' rows differ in number.
"""
