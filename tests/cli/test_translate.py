"""`jaxformer translate`: one output line per input line, in order; failures name the line."""

import dataclasses
import io
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest

from jaxformer.cli import translate as command
from jaxformer.cli.main import main
from jaxformer.config import (
    BeamConfig,
    CheckpointConfig,
    CopyTranslationConfig,
    GPTConfig,
    LanguageConfig,
    TransformerConfig,
)
from jaxformer.data.tokenizer import ByteTokenizer, CharTokenizer
from jaxformer.decoding.beam import translate
from jaxformer.run.load import load_run
from tests.runs import save_run
from tests.tokenizers_of_all_kinds import lossy_tokenizer

LETTERS = "\t\nabcdefgh"
SIZES = {"width": 8, "num_heads": 2, "mlp_width": 16, "num_layers": 1, "init_std": 0.5}
MODEL = TransformerConfig(vocab_size=len(LETTERS) + 3, context_length=12, **SIZES)
CONFIG = CopyTranslationConfig(model=MODEL, checkpoint=CheckpointConfig(every=1))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two checkpoints; its tokens are the letters a to h, newline and tab."""
    path = tmp_path_factory.mktemp("runs") / "run"
    return save_run(path, CONFIG, CharTokenizer(LETTERS), (1, 2))


@pytest.fixture
def translated(run, capsys, monkeypatch):
    """Standard output, standard error and exit status of the command for an input."""

    def translated(text, *words, run=run):
        content = io.BytesIO()
        content.write(text if isinstance(text, bytes) else text.encode())
        content.seek(0)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(content))
        status = 0
        try:
            main(["translate", str(run), *words])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return out, err, status

    return translated


def by_hand(run_dir, lines, beam, **options):
    """The hypotheses of each line, each translated alone."""
    run = load_run(run_dir, **options)

    def found(line):
        source = run.tokenizer.encode(line)
        return translate(run.graphdef, run.params, run.config.model, [source], run.specials, beam)[
            0
        ]

    return run, [found(line) for line in lines]


def on_one_line(run, hypothesis):
    return " ".join(run.tokenizer.decode(hypothesis.tokens).splitlines()).strip()


SENTENCES = ["abc", "hgfedcba", "a", "bb", "cdefabcdefgh", "fa", "dead", "beef"]
INPUT = "".join(f"{line}\n" for line in SENTENCES)


def test_each_line_is_translated_in_order_as_if_alone(run, translated):
    loaded, found = by_hand(run, SENTENCES, BeamConfig())
    expected = "".join(f"{on_one_line(loaded, first)}\n" for first, *_ in found)
    assert translated(INPUT) == (expected, "", 0)
    assert len(set(expected.splitlines())) > 2


@pytest.mark.parametrize("ahead", [1, 2])
@pytest.mark.parametrize("batch", ["1", "3", "64"])
def test_lines_do_not_depend_on_how_they_are_batched(translated, monkeypatch, batch, ahead):
    together = translated(INPUT)
    monkeypatch.setattr(command, "BATCHES_AT_ONCE", ahead)
    assert translated(INPUT, "--batch", batch) == together


def test_n_best_lines_hold_number_score_and_text(run, translated):
    beam = BeamConfig(beam=3, length_penalty=1.0, n_best=3)
    loaded, found = by_hand(run, SENTENCES, beam)
    out, err, status = translated(INPUT, "--beam", "3", "--length-penalty", "1", "--n-best", "3")
    assert (err, status) == ("", 0)
    rows = [line.split("\t", 2) for line in out.split("\n")[:-1]]
    assert [(int(row[0]), row[2]) for row in rows] == [
        (number, on_one_line(loaded, hypothesis))
        for number, hypotheses in enumerate(found, start=1)
        for hypothesis in hypotheses
    ]
    scores = [hypothesis.score for hypotheses in found for hypothesis in hypotheses]
    np.testing.assert_allclose([float(row[1]) for row in rows], scores, rtol=1e-4)


def test_beam_flags_take_effect(run, translated):
    loaded, found = by_hand(run, SENTENCES, BeamConfig(beam=1, length_penalty=0, extra_length=2))
    out, _, _ = translated(INPUT, "--beam", "1", "--length-penalty", "0", "--extra-length", "2")
    assert out == "".join(f"{on_one_line(loaded, first)}\n" for first, *_ in found)
    assert out != translated(INPUT, "--beam", "4", "--extra-length", "2")[0]


def test_the_mean_of_checkpoints_translates(run, translated):
    loaded, found = by_hand(run, SENTENCES, BeamConfig(), average=2)
    out, err, status = translated(INPUT, "--average", "2")
    assert (err, status) == ("", 0)
    assert out == "".join(f"{on_one_line(loaded, first)}\n" for first, *_ in found)
    assert out != translated(INPUT)[0]


def test_failed_lines_are_named_by_number_and_the_rest_is_translated(translated):
    good, _, _ = translated("abc\nfa\n")
    first, last = good.splitlines()
    out, err, status = translated(b"abc\nxyz\n" + 13 * b"a" + b"\nab\xff\n\n  \r\nfa")
    assert out.split("\n") == [first, "", "", "", "", "", last, ""]
    unknown, long, encoding = err.splitlines()
    assert re.match(r"line 2: .*'x'", unknown)
    assert re.match(r"line 3: .*\b13 tokens .*\b12\b", long)
    assert re.match(r"line 4: byte 3 .*UTF-8", encoding)
    assert status == 2


def test_with_n_best_a_failed_line_is_empty_too(translated):
    out, err, status = translated("abc\nxyz\n\nfa\n", "--n-best", "2")
    numbers = [line.partition("\t")[0] for line in out.split("\n")]
    assert numbers == ["1", "1", "", "", "4", "4", ""]
    assert err.startswith("line 2: ")
    assert status == 2


def test_line_numbers_continue_across_read_ahead_blocks(translated, monkeypatch):
    monkeypatch.setattr(command, "BATCHES_AT_ONCE", 1)
    _, err, status = translated(4 * "abc\n" + "x\n", "--batch", "2")
    assert (err[:8], status) == ("line 5: ", 2)


@pytest.mark.parametrize("same", ["abc", "abc\r\n", "  abc \n", "\ufeffabc\n"])
def test_white_space_around_a_sentence_is_ignored(translated, same):
    assert translated(same) == translated("abc\n")


def test_a_byte_order_mark_within_the_input_is_a_character(translated):
    out, err, status = translated("abc\n\ufeffabc\n")
    assert (out, status) == (f"{translated('abc')[0]}\n", 2)
    assert re.match(r"line 2: .*ufeff", err)


def test_no_input_prints_nothing(translated):
    assert translated("") == ("", "", 0)


def test_a_translation_is_one_line_whatever_its_tokens(run):
    loaded = load_run(run)
    tab, newline, a, b = loaded.tokenizer.encode("\t\nab")
    known = np.array([a, newline, b, tab, a, newline])
    assert (
        command.one_line(
            loaded,
            by_hand(run, ["a"], BeamConfig())[1][0][0]._replace(
                tokens=np.append(known, loaded.specials.end + 1)
            ),
        )
        == "a b\ta"
    )


def test_blocks_come_in_order_as_soon_as_they_can():
    seen = []

    def blocks():
        for number in (3, 1, 2, 5, 4):
            seen.append(number)
            yield number, f"block {number}"

    shown = [(block, len(seen)) for block in command.in_order(blocks(), first=1)]
    assert shown == [
        ("block 1", 2),
        ("block 2", 3),
        ("block 3", 3),
        ("block 4", 5),
        ("block 5", 5),
    ]


def test_batches_are_shown_before_the_input_has_ended(run):
    program = f"""
import jaxformer.cli.translate as command
command.main([{str(run)!r}, "--batch", "2"])
"""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True, env=os.environ
    ) as process:
        process.stdin.write("abc\nfa\n")
        process.stdin.flush()
        overdue = threading.Timer(
            120, process.kill
        )  # otherwise a line held back would block the test
        overdue.start()
        early = [process.stdout.readline(), process.stdout.readline()]
        process.stdin.write("dead\n")
        process.stdin.close()
        late = process.stdout.read()
        overdue.cancel()
    assert all(early)
    assert late.endswith("\n")
    assert process.returncode == 0


def test_lines_are_taken_as_they_arrive():
    reading, writing = os.pipe()
    with open(reading, "rb") as stream:
        blocks = command.arriving(stream, most=2)
        os.write(writing, b"1\n2\n3\n4")
        assert [next(blocks), next(blocks)] == [[b"1", b"2"], [b"3"]]
        os.write(writing, b"5\n\n")
        assert next(blocks) == [b"45", b""]
        os.write(writing, b"6\n7")
        os.close(writing)
        assert list(blocks) == [[b"6", b"7"]]


def refused(translated, *words, **options):
    """The one line of a refusal; nothing else is printed."""
    out, err, status = translated("abc\n", *words, **options)
    assert (out, status) == ("", 2)
    (line,) = err.splitlines()
    return line


def test_a_run_of_a_gpt_is_refused(translated, tmp_path):
    model = GPTConfig(vocab_size=256, context_length=8, **SIZES)
    path = save_run(tmp_path / "gpt", LanguageConfig(model=model), ByteTokenizer())
    line = refused(translated, run=path)
    assert "jaxformer sample" in line
    assert str(path) in line


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--beam", "0"), "beam 0 "),
        (("--n-best", "5"), "n-best 5 "),
        (("--length-penalty", "-1"), "length-penalty -1.0 "),
        (("--batch", "0"), "batch 0 "),
        (("--average", "0"), "average 0 "),
        (("--average", "3"), "not 3"),
        (("--beem", "3"), "--beem"),
    ],
)
def test_bad_arguments_are_refused(translated, words, part):
    assert part in refused(translated, *words)


def test_a_directory_that_is_not_a_run_is_refused(translated, tmp_path):
    assert str(tmp_path / "none") in refused(translated, run=tmp_path / "none")


def test_a_closed_standard_input_is_refused(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(SystemExit) as stop:
        main(["translate", str(run)])
    assert stop.value.code == 2
    assert "standard input" in capsys.readouterr().err


def test_a_text_without_tokens_has_an_empty_translation(tmp_path):
    """Such as blanks, of which this tokenizer keeps none."""
    model = dataclasses.replace(MODEL, vocab_size=lossy_tokenizer().vocab_size + 3)
    config = dataclasses.replace(CONFIG, model=model)
    run = load_run(save_run(tmp_path / "run", config, lossy_tokenizer()))
    search = BeamConfig(beam=2)
    (alone,) = run.translate(["the cat"], search)
    assert run.translate(["", "the cat", " \n"], search) == ["", alone, ""]
    assert run.translate([" "], search) == [""]
