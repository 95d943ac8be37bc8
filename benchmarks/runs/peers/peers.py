"""Which peers there are, and where each runs."""

from __future__ import annotations

from .asking import Peer
from .problems import NETWORKS, TRANSFORMERS

_CONVOLUTIONAL = tuple(name for name in NETWORKS if name not in TRANSFORMERS)
_LINEAR_ONLY = dict.fromkeys(_CONVOLUTIONAL, "takes Linear layers only, and the weights are in convolutions")
_TRANSFORMERS_ONLY = dict.fromkeys(_CONVOLUTIONAL, "takes models of transformers only")
_WIDE_CONVOLUTIONS = dict.fromkeys(_CONVOLUTIONAL, "leaves convolutions at 8 bits, whatever it is asked")
_NO_PLACE_FOR_SCALES = {
    "minilm": "scales inputs in the layer before, and those LayerNorms feed the residual as well",
    "smollm2": "scales inputs in norms, which an answer may not change",
}
_NOT_TRACED = dict.fromkeys(TRANSFORMERS, "traces networks with torch.fx, which models of transformers do not bear")
_LANGUAGE_MODELS_ONLY = dict.fromkeys(
    (name for name in NETWORKS if name != "smollm2"), "takes language models only, that predict tokens"
)
_FROM_SOURCE = {"smollm2": "builds GPU kernels from source; llm-compressor's row has the same algorithm"}

PEERS = (
    Peer("ours", "ours"),
    Peer("nearest, absmax", "nearest", options={"clip": "absmax"}),
    Peer("nearest, least squares", "nearest", options={"clip": "mse"}),
    Peer("HAWQ's score, our candidates", "scores", options={"score": "hawq"}),
    Peer("Model Optimizer's score, our candidates", "scores", options={"score": "output_error"}),
    Peer("AutoScheme's score, our candidates", "scores", options={"score": "gradient_error"}),
    Peer("CLADO's matrix, our candidates", "scores", options={"score": "clado"}),
    Peer("Model Optimizer", "modelopt", "modelopt", {"method": "gradient", "rescaled": False}),
    Peer("Model Optimizer, scores rescaled", "modelopt", "modelopt", {"method": "gradient", "rescaled": True}),
    Peer("MCT", "mct", "mct", cannot=_NOT_TRACED),
    Peer("llm-compressor, GPTQ", "llmcompressor", "llmcompressor", cannot=_TRANSFORMERS_ONLY),
    Peer("llm-compressor, AWQ", cannot={**_TRANSFORMERS_ONLY, **_NO_PLACE_FOR_SCALES}),
    Peer("brevitas, GPTQ", "brevitas", "brevitas", {"algorithm": "gptq"}),
    Peer("brevitas, Qronos", "brevitas", "brevitas", {"algorithm": "qronos"}),
    Peer("NNCF", "nncf", "nncf", cannot=_WIDE_CONVOLUTIONS),
    Peer("torchao", "torchao", "torchao", cannot=_LINEAR_ONLY),
    Peer("HQQ", "hqq", "hqq", zero_points=True, cannot=_LINEAR_ONLY),
    Peer("AutoRound", "autoround", "autoround", {"iterations": 200}, cannot=_LANGUAGE_MODELS_ONLY),
    Peer("GPTQModel", cannot={**_LANGUAGE_MODELS_ONLY, **_FROM_SOURCE}),
)
"""In the order of the tables."""
