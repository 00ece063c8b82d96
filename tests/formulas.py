"""Parameters and operations by closed formula, to compare with what is counted from shapes."""

from jaxformer.config import (
    BertConfig,
    BlockConfig,
    DecoderConfig,
    GPTConfig,
    TransformerConfig,
)


def layer_parameters(config: BlockConfig) -> tuple[int, int, int]:
    """Of a norm (D), an attention (4D²) and a feed-forward network (2DF), each with its biases."""
    D, F, bias = config.width, config.mlp_width, int(config.use_bias)
    return D + bias * D, 4 * (D * D + bias * D), 2 * D * F + bias * (F + D)


def gpt_parameters(config: GPTConfig) -> int:
    """VD + TD + N(4D² + 2DF + biases and norms) + final norm."""
    norm, attention, mlp = layer_parameters(config)
    embeddings = (config.vocab_size + config.context_length) * config.width
    return embeddings + config.num_layers * (attention + mlp + 2 * norm) + norm


def transformer_parameters(config: TransformerConfig) -> int:
    """VD once or three times, N(4D² + 2DF) of the encoder, N(8D² + 2DF) of the decoder, biases,
    two norms per encoder block and three per decoder block, and the pre-LN stacks' final norms."""
    norm, attention, mlp = layer_parameters(config)
    embeddings = config.vocab_size * config.width * (1 if config.share_embeddings else 3)
    final = 2 * norm if config.norm_placement == "pre" else 0
    return embeddings + config.num_layers * (3 * attention + 2 * mlp + 5 * norm) + final


def bert_parameters(config: BertConfig) -> int:
    """(V + T + S)D and its norm, N blocks, and the head: D² and its norm, a bias per token."""
    norm, attention, mlp = layer_parameters(config)
    D = config.width
    embeddings = (config.vocab_size + config.context_length + config.num_segments) * D + norm
    head = D * D + int(config.use_bias) * D + norm + config.vocab_size
    return embeddings + config.num_layers * (attention + mlp + 2 * norm) + head


def decoder_parameters(config: DecoderConfig) -> int:
    """VD once or twice, N(2D HK + 2D GK + 3DF + biases and norms) and a final norm of D."""
    D, F, H, G = config.width, config.mlp_width, config.num_heads, config.num_kv_heads
    K = config.head_width
    attention = 2 * D * H * K + 2 * D * G * K + 2 * K * config.qk_norm
    attention += (H + 2 * G) * K * config.attention_bias + D * config.attention_out_bias
    mlp = 3 * D * F + (2 * F + D) * config.mlp_bias
    norms = (4 if config.post_norms else 2) * D
    embeddings = config.vocab_size * D * (1 if config.tie_embeddings else 2)
    return embeddings + config.num_layers * (attention + mlp + norms) + D


def decoder_flops(config: DecoderConfig, rows: int, length: int) -> float:
    """Of a batch (B, L): B L (6 (N (2D HK + 2D GK + 3DF) + DV) + 12 N HK L)."""
    D, F, N, V = config.width, config.mlp_width, config.num_layers, config.vocab_size
    queries, keys = (n * config.head_width for n in (config.num_heads, config.num_kv_heads))
    products = N * (2 * D * (queries + keys) + 3 * D * F) + D * V
    return rows * length * (6.0 * products + 12.0 * N * queries * length)


def gpt_flops(config: GPTConfig, rows: int, length: int) -> float:
    """Of a batch (B, L): B L (6 (N (4D² + 2DF) + DV) + 12 N D L)."""
    D, F, N, V = config.width, config.mlp_width, config.num_layers, config.vocab_size
    products, attention = N * (4 * D * D + 2 * D * F) + D * V, N * D * length
    return rows * length * (6.0 * products + 12.0 * attention)


def transformer_flops(config: TransformerConfig, rows: int, M: int, L: int) -> float:
    """Of B pairs of M source and L target tokens each.

    Source tokens pass 4D² + 2DF weights in each of N encoder blocks and the 2D² of the keys and
    values of N cross-attentions; target tokens 6D² + 2DF in N decoder blocks, and DV logits.
    """
    D, F, N, V = config.width, config.mlp_width, config.num_layers, config.vocab_size
    products = M * N * (6 * D * D + 2 * D * F) + L * (N * (6 * D * D + 2 * D * F) + D * V)
    attention = N * D * (M * M + L * L + L * M)
    return rows * (6.0 * products + 12.0 * attention)
