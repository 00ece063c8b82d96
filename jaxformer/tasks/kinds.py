"""The kinds of run, told apart in one place: by the type of their configuration."""

from jax.sharding import Mesh

from jaxformer.config import LanguageConfig
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.data.translation import special_tokens_of
from jaxformer.tasks.config_io import RunConfig
from jaxformer.tasks.language_modeling import language_method, language_task
from jaxformer.tasks.task import Task, TrainSpec
from jaxformer.tasks.translation import translation_method, translation_task


def make_task(config: RunConfig, mesh: Mesh) -> Task:
    """What a run of this configuration has to do; its data are prepared."""
    if isinstance(config, LanguageConfig):
        return language_task(config, mesh)
    return translation_task(config, mesh)


def make_method(config: RunConfig, tokenizer: Tokenizer) -> TrainSpec:
    """How a run of this settled configuration learns."""
    if isinstance(config, LanguageConfig):
        return language_method(config)
    return translation_method(config, special_tokens_of(tokenizer))


def num_tokens(config: RunConfig, tokenizer: Tokenizer) -> int:
    """Tokens that a model of this kind has to know: a translation's special ones too."""
    if isinstance(config, LanguageConfig):
        return tokenizer.vocab_size
    return special_tokens_of(tokenizer).end + 1


def smoothing_of(config: RunConfig) -> float:
    """The label smoothing that a run's training loss has and its validation loss has not."""
    return 0.0 if isinstance(config, LanguageConfig) else config.label_smoothing


def writing_command(config: RunConfig) -> str:
    """The command that writes text with such a run."""
    return "jaxformer sample" if isinstance(config, LanguageConfig) else "jaxformer translate"
