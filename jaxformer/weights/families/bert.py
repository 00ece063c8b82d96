"""BERT as transformers' BertForMaskedLM has it: the twin rule under other names.

Its `cls.predictions.decoder` is the token embedding and the bias again. Pooler and next-sentence
head, which files of BertForPreTraining have, do not take part in masked-language modeling. Files of
the first release call a norm's scale gamma and its bias beta.
"""

from jaxformer.config import BertConfig
from jaxformer.weights.convert import Row, Unused
from jaxformer.weights.families.gpt2 import ACTIVATIONS
from jaxformer.weights.settings import Family, Fixed, Setting, Values
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


def _complete(values: Values) -> Values:
    values["attention_probs_dropout_prob"] = values.get("attention_probs_dropout_prob", 0.1) != 0.0
    return values


def _written(config: BertConfig) -> Values:
    attention = config.dropout_rate if config.attention_dropout else 0.0
    return {"attention_probs_dropout_prob": attention}


FAMILY = Family(
    model_type="bert",
    architecture="BertForMaskedLM",
    kind="bert",
    config=BertConfig,
    table=HUGGING_FACE,
    settings=(
        Setting("vocab_size", "vocab_size", 30_522),
        Setting("max_position_embeddings", "context_length", 512),
        Setting("type_vocab_size", "num_segments", 2),
        Setting("hidden_size", "width", 768),
        Setting("num_hidden_layers", "num_layers", 12),
        Setting("num_attention_heads", "num_heads", 12),
        Setting("intermediate_size", "mlp_width", 3072),
        Setting("hidden_act", "activation", "gelu", ACTIVATIONS),
        Setting("layer_norm_eps", "norm_epsilon", 1e-12),
        Setting("hidden_dropout_prob", "dropout_rate", 0.1),
        Setting("attention_probs_dropout_prob", "attention_dropout", 0.1),
        Fixed("position_embedding_type", "absolute"),
        Fixed("is_decoder", False),
        Fixed("add_cross_attention", False),
    ),
    # tie_word_embeddings: the tensors say it, for an untied decoder differs from the embedding.
    ignored=frozenset({
        "classifier_dropout", "directionality", "model_max_length", "pooler_fc_size",
        "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head",
        "pooler_type", "tie_word_embeddings", "vocab_size_or_config_json_file",
    }),
    complete=_complete,
    written=_written,
)  # fmt: skip
