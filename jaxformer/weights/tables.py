"""The former names of the tables of rows, kept for one release."""

from jaxformer.weights.convert import Row
from jaxformer.weights.families import bert, gpt2, marian
from jaxformer.weights.transforms import Halves
from jaxformer.weights.twin import TWIN

GPT = TRANSFORMER = BERT = TWIN
GPT2_HUGGING_FACE = gpt2.HUGGING_FACE
BERT_HUGGING_FACE = bert.HUGGING_FACE
MARIAN_HUGGING_FACE = tuple(
    row._replace(transforms=tuple(t for t in row.transforms if not isinstance(t, Halves)))
    if isinstance(row, Row)
    else row
    for row in marian.HUGGING_FACE
)
"""`marian.HUGGING_FACE` without the reordering of the residual stream, as it was by this name."""
