"""`jaxformer attention RUN`: a picture for both kinds of run, refusals in one line."""

import re

import numpy as np
import pytest

from jaxformer.cli import attention
from jaxformer.cli.main import main
from jaxformer.config import (
    CopyTranslationConfig,
    GPTConfig,
    LanguageConfig,
    TransformerConfig,
)
from jaxformer.data.tokenizer import ByteTokenizer, CharTokenizer
from jaxformer.run.load import load_run
from tests.runs import save_run
from tests.tokenizers_of_all_kinds import SENTENCES

SIZES = {"context_length": 16, "width": 8, "num_heads": 2, "mlp_width": 16, "num_layers": 1}
ALPHABET = " abcdefgh"


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    model = GPTConfig(vocab_size=len(ALPHABET), init_std=0.5, **SIZES)
    return save_run(
        tmp_path_factory.mktemp("runs") / "gpt",
        LanguageConfig(model=model),
        CharTokenizer(ALPHABET),
    )


@pytest.fixture(scope="module")
def translation(tmp_path_factory):
    model = TransformerConfig(vocab_size=len(ALPHABET) + 3, init_std=0.5, **SIZES)
    path = tmp_path_factory.mktemp("runs") / "translation"
    return save_run(path, CopyTranslationConfig(model=model), CharTokenizer(ALPHABET))


def drawn(capsys, *words):
    main(["attention", *map(str, words)])
    out, err = capsys.readouterr()
    assert err == ""
    return out.strip()


def refusal(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["attention", *map(str, words)])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    return err.removeprefix("jaxformer attention: error: ").strip()


def test_draws_a_text_of_a_gpt(gpt, capsys):
    path = gpt / "attention.png"
    path.write_bytes(b"of somebody else")
    assert refusal(capsys, gpt, "--text", "a bad cafe").startswith(f"--output {path} is there ")
    assert path.read_bytes() == b"of somebody else"
    path.unlink()
    assert drawn(capsys, gpt, "--text", "a bad cafe") == str(path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_draws_a_source_with_a_given_target_or_the_greedy_one(translation, capsys, tmp_path):
    for extra in ((), ("--target", "dab a")):
        path = tmp_path / "picture.png"
        assert drawn(capsys, translation, "--text", "bad", "--output", path, *extra) == str(path)
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_decoder_reads_the_start_and_then_the_target(translation):
    encoder, decoder, cross = attention.translation_stacks(load_run(translation), "bad", "fa ce")
    assert encoder.queries == encoder.keys == cross.keys == ["b", "a", "d"]
    assert decoder.queries == decoder.keys == cross.queries == ["<s>", "f", "a", "␣", "c", "e"]
    assert [np.shape(stack.layers) for stack in (encoder, decoder, cross)] == [
        (1, 2, 3, 3),
        (1, 2, 6, 6),
        (1, 2, 6, 3),
    ]


def test_a_label_shows_the_space_before_a_word_at_any_position():
    tokens = SENTENCES.encode("the cat the cat\n")
    words = attention.labels(SENTENCES, tokens)
    assert "".join(words) == "␣the␣cat␣the␣cat⏎"
    assert words[: len(words) // 2] == words[len(words) // 2 : -1]


def test_tokens_that_are_parts_of_a_character_are_labelled_with_it():
    tokens = ByteTokenizer().encode("中é 文")
    parts = ["中 1/3", "中 2/3", "中 3/3", "é 1/2", "é 2/2", "␣", "文 1/3", "文 2/3", "文 3/3"]
    assert attention.labels(ByteTokenizer(), tokens) == parts


@pytest.mark.parametrize("text", ["中文 日本語 한국어 👍🏽", "שלום سلام naïve ก็", " the 中 cat"])
def test_labels_of_a_bpe_spell_the_text(text):
    tokens = SENTENCES.encode(text)
    words = attention.labels(SENTENCES, tokens)
    assert len(words) == len(tokens)
    assert not any(word.startswith("#") or not word for word in words)
    whole = [word for word in words if not re.search(r" ([2-9])/[2-9]$", word)]
    spelled = "".join(re.sub(r" 1/[2-9]$", "", word) for word in whole)
    assert spelled.replace("␣", " ").strip() == text.strip()


def test_labels_of_bytes_that_form_no_character_are_their_numbers():
    tokens = np.array([195, 97, 184, 300, 228, 184])
    assert attention.labels(ByteTokenizer(), tokens) == ["#195", "a", "#184", "<s>", "#228", "#184"]


def test_white_space_around_a_text_is_ignored_as_in_translation(translation):
    source = attention.translation_stacks(load_run(translation), " bad ", " a ")[2]
    assert (source.keys, source.queries) == (["b", "a", "d"], ["<s>", "a"])


def test_refuses_in_one_line(gpt, translation, capsys, tmp_path):
    assert "--target" in refusal(capsys, gpt, "--text", "a", "--target", "b")
    assert "--text is empty" in refusal(capsys, gpt, "--text", "")
    assert "--text is empty" in refusal(capsys, translation, "--text", " ")
    assert "--output a.pdf" in refusal(capsys, gpt, "--text", "a", "--output", "a.pdf")
    assert "--text has 17 tokens" in refusal(capsys, gpt, "--text", "a" * 17)
    assert "--target has 17 tokens" in refusal(
        capsys, translation, "--text", "a", "--target", "b" * 16
    )
    assert "'z'" in refusal(capsys, gpt, "--text", "z")
    assert str(tmp_path / "absent") in refusal(capsys, tmp_path / "absent", "--text", "a")
    absent = tmp_path / "absent" / "a.png"
    assert str(absent.parent) in refusal(capsys, gpt, "--text", "a", "--output", absent)
