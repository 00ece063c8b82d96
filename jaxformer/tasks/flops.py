"""Floating-point operations that a model needs for a batch: 6 a multiplied weight and token.

Two in the forward pass, four in the backward pass, and 12 K for each pair of a query and a key of
a head, whether a mask hides it or not (Chowdhery et al. 2022, PaLM, appendix B). Tables are looked
up, not multiplied; norms, biases and softmax are not counted, nor what rematerialisation repeats.
"""

from jaxformer.config import GPTConfig, TransformerConfig


def gpt_flops(config: GPTConfig, rows: int, length: int) -> float:
    """Of a batch (rows, length): 6 (N (4D² + 2DF) + DV) + 12 N D length, a token."""
    D, F, N, V = config.width, config.mlp_width, config.num_layers, config.vocab_size
    products, attention = N * (4 * D * D + 2 * D * F) + D * V, N * D * length
    return rows * length * (6.0 * products + 12.0 * attention)


def transformer_flops(
    config: TransformerConfig, rows: int, source_length: int, target_length: int
) -> float:
    """Of a batch of `rows` pairs, M source and L target tokens each, padding included.

    Source tokens pass 4D² + 2DF weights in each of N encoder blocks and the 2D² of the keys and
    values of N cross-attentions; target tokens 6D² + 2DF in N decoder blocks, and DV logits.
    """
    D, F, N, V = config.width, config.mlp_width, config.num_layers, config.vocab_size
    M, L = source_length, target_length
    products = M * N * (6 * D * D + 2 * D * F) + L * (N * (6 * D * D + 2 * D * F) + D * V)
    attention = N * D * (M * M + L * L + L * M)
    return rows * (6.0 * products + 12.0 * attention)
