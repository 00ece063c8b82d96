"""How alike two names of weights are, by words that the field uses for one thing."""

import functools
import re
from collections.abc import Iterable

WORDS = {
    "query": "q wq query queries to_q q_proj q_lin",
    "key": "k wk key keys to_k k_proj k_lin",
    "value": "v wv value values to_v v_proj v_lin",
    "out": "o wo out output to_out out_proj c_proj dense_out proj o_proj",
    "gate": "gate w1 wi_0 gate_proj",
    "up": "up fc1 wi w1 w3 wi_1 up_proj c_fc linear1 hidden fc",
    "down": "down fc2 w2 down_proj linear2",
    "weight": "weight kernel scale gain g gamma w table embedding",
    "bias": "bias b beta shift offset",
    "mean": "mean running_mean mu moving_mean",
    "variance": "var variance running_var moving_var",
    "norm": "norm ln layernorm layer_norm bn rmsnorm batchnorm groupnorm",
    "attention": "attn attention self_attn mha mhsa self_attention",
    "embed": "embed embedding embeddings wte tok token emb tokens embed_tokens word_embeddings",
    "position": "pos position positions wpe pos_embed posembed position_embeddings",
    "head": "head lm_head classifier classify readout logits decoder",
    "encoder": "encoder enc",
    "decoder": "decoder dec",
    "cross": "cross cross_attn context encdec",
    "back": "back backward reverse",
    "shortcut": "shortcut downsample skip",
    "input": "ih w_x b_x u w_ih",
    "hidden_state": "hh w_h b_h w_hh",
}
"""Words by what they mean; a word may mean several things."""
EXCLUSIVE = (
    ("query", "key", "value"),
    ("gate", "up", "down"),
    ("encoder", "decoder"),
    ("input", "hidden_state"),
)
TWO_WAYS = "back"
"""A meaning that a name has where its opposite has no word."""
"""Meanings of which a name has one: two names of different ones are not of one weight."""
_NUMBERED = re.compile(r"(?:^|[.\[])(?:[a-z]*(?:layer|block|stage|unit|h)_?)?(\d+)(?=[.\]]|$)")
_MEANINGS: dict[str, set[str]] = {}
for _meaning, _words in WORDS.items():
    for _word in _words.split():
        _MEANINGS.setdefault(_word, set()).add(_meaning)


@functools.lru_cache(maxsize=65536)
def meanings(name: str) -> frozenset[str]:
    """The meanings and the words of a name."""
    lower = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
    found: set[str] = set()
    for part in re.split(r"[.\[\]/#]", lower):
        part = part if part in _MEANINGS else re.sub(r"_?\d+$", "", part)
        pieces = {part, *part.split("_")}
        for piece in pieces:
            found |= _MEANINGS.get(piece, {piece} if len(piece) > 1 else set())
    return frozenset(found)


@functools.lru_cache(maxsize=65536)
def numbers(name: str) -> tuple[int, ...]:
    """The numbers in a name: of layers, heads, parts."""
    return tuple(int(part) for part in _NUMBERED.findall(name))


def likeness(a: str, b: str) -> float:
    """From -1 to 1.1: the meanings and numbers in common; least if they exclude each other."""
    mine, theirs = meanings(a), meanings(b)
    for group in EXCLUSIVE:
        here, there = mine & set(group), theirs & set(group)
        if here and there and not here & there:
            return -1.0
    if (TWO_WAYS in mine) != (TWO_WAYS in theirs):
        return -0.5
    union = len(mine | theirs)
    words = len(mine & theirs) / union if union else 0.0
    layers = numbers(a), numbers(b)
    same = sum(x == y for x, y in zip(*layers, strict=False)) / max(*map(len, layers), 1)
    return 0.7 * words + 0.4 * same


def ordinal(name: str) -> tuple[str, str] | None:
    """`("0.norm*.bias", "2")` for `0.norm2.bias`: a family of names and the place in it.

    The last number of a name, or a letter after an underscore, says which of several it is.
    """
    found = list(re.finditer(r"(?<=[a-zA-Z_.])\d+(?=[.\]]|$)|(?<=_)[a-h](?=[.\]]|$)", name))
    if not found:
        return None
    last = found[-1]
    return f"{name[: last.start()]}*{name[last.end() :]}", last[0]


def ranks(names: Iterable[str]) -> dict[str, tuple[int, int, tuple[int, ...]]]:
    """Of each name with an ordinal: which of its family it is, of how many, and in which layer."""
    families: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        found = ordinal(name)
        if found:
            families.setdefault(found[0], []).append((found[1], name))
    return {
        name: (rank, len(family), numbers(key))
        for key, family in families.items()
        for rank, (_, name) in enumerate(sorted(family, key=lambda x: (len(x[0]), x[0])))
    }
