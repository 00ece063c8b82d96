"""BERT as transformers' BertForMaskedLM has it: the twin rule under other names.

Its `cls.predictions.decoder` is the token embedding and the bias again. Pooler and next-sentence
head, which files of BertForPreTraining have, do not take part in masked-language modeling. Files of
the first release call a norm's scale gamma and its bias beta.
"""

from jaxformer.weights.convert import Row, Unused
from jaxformer.weights.twin import beneath

_LAYER, _HEAD = "bert.encoder.layer.*", "cls.predictions.transform"
_NAMES = {
    "embed": "bert.embeddings.word_embeddings",
    "positions": "bert.embeddings.position_embeddings",
    "segments": "bert.embeddings.token_type_embeddings",
    "embedding_norm": "bert.embeddings.LayerNorm",
    "encoder/blocks/*/attention/query": f"{_LAYER}.attention.self.query",
    "encoder/blocks/*/attention/key": f"{_LAYER}.attention.self.key",
    "encoder/blocks/*/attention/value": f"{_LAYER}.attention.self.value",
    "encoder/blocks/*/attention/out": f"{_LAYER}.attention.output.dense",
    "encoder/blocks/*/attention_norm": f"{_LAYER}.attention.output.LayerNorm",
    "encoder/blocks/*/mlp/up": f"{_LAYER}.intermediate.dense",
    "encoder/blocks/*/mlp/down": f"{_LAYER}.output.dense",
    "encoder/blocks/*/mlp_norm": f"{_LAYER}.output.LayerNorm",
    "head/dense": f"{_HEAD}.dense",
    "head/norm": f"{_HEAD}.LayerNorm",
}
HUGGING_FACE: tuple[Row | Unused, ...] = (
    *(row for ours, theirs in _NAMES.items() for row in beneath(ours, theirs)),
    Row("head/bias", "cls.predictions.bias"),
    Row("head/bias", "cls.predictions.decoder.bias"),
    Row("embed/embedding", "cls.predictions.decoder.weight"),
    *(
        Row(f"{ours}/{leaf}", f"{theirs}.{name}")
        for ours, theirs in _NAMES.items()
        for leaf, name in (("scale", "gamma"), ("bias", "beta"))
        if theirs.endswith("LayerNorm")
    ),
    Unused("bert.embeddings.position_ids"),
    *(Unused(f"bert.pooler.dense.{name}") for name in ("weight", "bias")),
    *(Unused(f"cls.seq_relationship.{name}") for name in ("weight", "bias")),
)
