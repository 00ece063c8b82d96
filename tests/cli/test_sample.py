"""`jaxformer sample`: its output, its stop conditions, its refusals."""

import re

import pytest

from jaxformer.cli import sample
from jaxformer.cli.main import main
from jaxformer.config import GPTConfig, LanguageConfig
from jaxformer.data.tokenizer import ByteTokenizer, CharTokenizer
from tests.runs import save_run


def wandering(path, tokenizer, unknown=0):
    """A run of a random model whose weights are large enough for varied texts.

    Its vocabulary has `unknown` tokens beyond those of the tokenizer.
    """
    model = GPTConfig(
        vocab_size=tokenizer.vocab_size + unknown,
        context_length=16,
        width=8,
        num_heads=2,
        mlp_width=16,
        num_layers=1,
        init_std=0.5,
    )
    return save_run(path, LanguageConfig(model=model), tokenizer)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose tokens are the characters a to h and the newline."""
    return wandering(tmp_path_factory.mktemp("runs") / "run", CharTokenizer("\nabcdefgh"))


@pytest.fixture
def printed(run, capsys):
    """The output of the command, given its arguments."""

    def sample(*words, run=run):
        main(["sample", str(run), "--max-new-tokens", "24", *words])
        return capsys.readouterr().out

    return sample


def refused(capsys, *words):
    """The one line of a refusal; nothing else is printed."""
    with pytest.raises(SystemExit) as stop:
        main(["sample", *map(str, words)])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    (line,) = err.splitlines()
    return line


def sections(out):
    """The text under each numbered line."""
    return [
        part.partition("\n")[2].removesuffix("\n")
        for part in out.split(f"{sample.RULE} sample")[1:]
    ]


def test_a_sample_is_the_prompt_and_its_continuation(printed):
    text = printed("--prompt", "abc")
    assert text.startswith("abc")
    assert len(text) == 3 + 24 + 1
    assert text.endswith("\n")


def test_without_a_prompt_the_text_follows_a_newline_that_is_not_shown(printed):
    assert printed("--prompt", "\n") == "\n" + printed()
    assert printed("--prompt", "") == "\n" + printed()


def test_equal_seeds_print_equal_texts(printed):
    assert printed("--seed", "3") == printed("--seed", "3")
    assert printed("--seed", "3") != printed("--seed", "4")


def test_sampling_flags_take_effect(printed):
    greedy = printed("--temperature", "0")
    assert greedy == printed("--top-k", "1", "--seed", "9") == printed("--min-p", "1")
    assert greedy == printed("--top-p", "1e-9", "--seed", "5") != printed()
    assert greedy != printed("--temperature", "0", "--repetition-penalty", "3")


def test_several_samples_are_rows_of_one_batch_under_numbered_lines(printed):
    out = printed("--prompt", "a", "--prompt", "bcd", "--num-samples", "2")
    assert [line for line in out.splitlines() if line.startswith("-")] == [
        f"{sample.RULE} sample {number} of 4 {sample.RULE}" for number in (1, 2, 3, 4)
    ]
    texts = sections(out)
    assert [text[0] for text in texts] == ["a", "a", "b", "b"]
    assert texts[0] + "\n" == printed("--prompt", "a")
    assert len(set(texts)) == 4


def test_samples_do_not_depend_on_how_they_are_batched(printed, monkeypatch):
    together = printed("--num-samples", "5")
    monkeypatch.setattr(sample, "ROWS_AT_ONCE", 2)
    assert printed("--num-samples", "5") == together


def test_a_single_sample_is_shown_token_by_token(run, monkeypatch):
    shown = []
    monkeypatch.setattr("builtins.print", lambda *words, **_: shown.append("".join(words)))
    main(["sample", str(run), "--prompt", "ab", "--max-new-tokens", "4"])
    assert [len(piece) for piece in shown] == [2, 1, 1, 1, 1, 0, 0]


def test_a_stop_string_across_tokens_ends_the_text_before_it(printed):
    whole = printed("--prompt", "a").removesuffix("\n")
    new = whole[1:]
    stop = new[9:12]
    stopped = printed("--prompt", "a", "--stop", stop, "--stop", "zz")
    assert stopped == "a" + new[: new.index(stop)] + "\n"


def test_decoding_stops_once_every_sample_has_stopped(printed, run, monkeypatch):
    new = printed("--prompt", "a")[1:-1]
    shown = []
    monkeypatch.setattr("builtins.print", lambda *words, **_: shown.append("".join(words)))
    main(["sample", str(run), "--prompt", "a", "--max-new-tokens", "24", "--stop", new[3]])
    steps = new.index(new[3]) + 1
    assert len(shown) == 1 + steps + 2  # the prompt, the steps, the rest, the newline


def test_a_stop_string_in_the_prompt_does_not_end_the_text(printed):
    new = printed("--prompt", "abch")[4:-1]
    text = printed("--prompt", "abch", "--stop", "bch")
    assert text == f"abch{new.partition('bch')[0]}\n" != "abch\n"


def test_each_sample_stops_for_itself(printed):
    whole = sections(printed("--num-samples", "4"))
    stop = whole[2][4:6]
    stopped = sections(printed("--num-samples", "4", "--stop", stop))
    assert stopped == [text.partition(stop)[0] for text in whole]
    assert len(set(map(len, stopped))) > 1


def test_bytes_that_are_not_text_are_replaced_and_nothing_is_lost(tmp_path, printed):
    run = wandering(tmp_path / "run", ByteTokenizer())
    text = printed("--prompt", "é", run=run)
    assert text.startswith("é")
    assert "\ufffd" in text


def test_tokens_beyond_the_tokenizer_are_shown_as_unknown(tmp_path, printed):
    run = wandering(tmp_path / "run", CharTokenizer("\nab"), unknown=9)
    text = printed("--temperature", "5", run=run).removesuffix("\n")
    assert len(text) == 24
    assert "\ufffd" in text
    assert set(text) <= set("\nab\ufffd")


def test_bad_arguments_are_refused_in_one_line(run, tmp_path, capsys):
    assert "'z'" in refused(capsys, run, "--prompt", "az")
    too_long = refused(capsys, run, "--prompt", "a", "--prompt", "a" * 17)
    assert re.search(r"\b17 tokens .*\b16\b", too_long)
    assert str(tmp_path / "none") in refused(capsys, tmp_path / "none")
    assert "config.json is missing" in refused(capsys, tmp_path)
    assert "max-new-tokens 0" in refused(capsys, run, "--max-new-tokens", "0")
    assert "num-samples 0" in refused(capsys, run, "--num-samples", "0")
    assert "top-k 0" in refused(capsys, run, "--top-k", "0")
    assert "temperature -1" in refused(capsys, run, "--temperature", "-1")
    assert "seed -1" in refused(capsys, run, "--seed", "-1")
    assert "stop string" in refused(capsys, run, "--stop", "")
    assert "--top-q" in refused(capsys, run, "--top-q", "1")
    assert refused(capsys).startswith("jaxformer sample: error: ")


def test_a_tokenizer_without_a_newline_needs_a_prompt(tmp_path, capsys):
    run = wandering(tmp_path / "run", CharTokenizer("ab"))
    assert "--prompt" in refused(capsys, run)
