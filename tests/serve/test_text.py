"""From tokens to text: stop strings across tokens, whole characters, calculations, log probs."""

from functools import reduce

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.servers import BYTES, tokens

from mlxchat.serve.reply_schema import Calculation
from mlxchat.serve.requests import Token
from mlxchat.serve.text import (
    LEAST_LOGPROB,
    Increment,
    StopStrings,
    Transcript,
    completion_logprobs,
)

CALL = ("<|python_start|>", "48/2", "<|python_end|>")
RESULT = ("<|output_start|>", "24.0", "<|output_end|>")


def followed(transcript: Transcript, ids: list[int], logprob: float | None = None) -> Increment:
    """Everything that becomes deliverable, until a stop string or the end."""

    def added(whole: Increment, piece: Increment) -> Increment:
        return Increment(
            whole.text + piece.text,
            whole.scored + piece.scored,
            whole.calculations + piece.calculations,
        )

    pieces = []
    for token in ids:
        pieces.append(transcript.take(Token(token, False, logprob, ())))
        if transcript.stopped:
            break
    return reduce(added, [*pieces, transcript.end()])


short = st.text(alphabet="ab\n", max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(short, max_size=6), st.lists(short.filter(bool), max_size=3))
def test_a_text_ends_before_the_first_stop_string(pieces: list[str], strings: list[str]) -> None:
    stops, delivered, seen = StopStrings(strings), "", ""
    for piece in pieces:
        seen += piece
        delivered += stops.take(piece)
        if stops.found:
            break
        held = seen[len(delivered) :]
        assert seen.startswith(delivered)
        assert not held or any(string.startswith(held) for string in strings)
    if not stops.found:
        delivered += stops.end()
    whole = "".join(pieces)
    places = [whole.find(string) for string in strings if string in whole]
    # A string that ends earlier counts, though one that began before it might have gone on.
    ends = {string: whole.find(string) + len(string) for string in strings if string in whole}
    assert stops.found == bool(places)
    assert delivered == whole if not places else len(delivered) <= min(ends.values())
    assert not any(string in delivered for string in strings)


def test_a_character_is_never_cut() -> None:
    transcript = Transcript(BYTES, [], calculator=True)
    texts = [transcript.take(Token(token, False, None, ())).text for token in tokens("a😀é")]
    assert texts == ["a", "", "", "", "😀", "", "é"]
    assert transcript.end().text == ""
    assert transcript.tokens == 7


def test_half_a_character_at_the_end_is_left_out() -> None:
    assert followed(Transcript(BYTES, [], calculator=True), tokens("a😀")[:-1]).text == "a"


def test_a_calculation_is_in_the_text_and_in_a_field_of_its_own() -> None:
    ids = tokens("It is ", *CALL, *RESULT, ", half.")
    whole = followed(Transcript(BYTES, [], calculator=True), ids)
    assert whole.text == "It is [48/2 = 24.0], half."
    assert whole.calculations == [Calculation(expression="48/2", result="24.0")]


@pytest.mark.parametrize(
    ("said", "text", "calculations"),
    [
        ([*CALL, *RESULT], "[48/2 = 24.0]", [("48/2", "24.0")]),
        ([*CALL, *RESULT, *CALL, *RESULT], "[48/2 = 24.0][48/2 = 24.0]", [("48/2", "24.0")] * 2),
        (["<|python_start|>", "4/", "<|python_end|>", "?"], "[4/]?", [("4/", None)]),
        (["<|python_start|>", "4"], "[4]", [("4", None)]),
        (["<|output_start|>", "4", "<|output_end|>"], "[4]", []),
        ([*CALL, "<|output_start|>", "24."], "[48/2]", [("48/2", None)]),
        ([*CALL, *RESULT[:2]], "[48/2]", [("48/2", None)]),
        (
            [*CALL, *RESULT, *CALL, "<|output_start|>", "2"],
            "[48/2 = 24.0][48/2]",
            [("48/2", "24.0"), ("48/2", None)],
        ),
        (["So ", "<|output_start|>", "4"], "So ", []),
    ],
)
def test_calculations_in_any_order(
    said: list[str], text: str, calculations: list[tuple[str, str | None]]
) -> None:
    whole = followed(Transcript(BYTES, [], calculator=True), tokens(*said))
    assert whole.text == text
    assert [(each.expression, each.result) for each in whole.calculations] == calculations


def test_a_result_is_delivered_when_it_is_whole() -> None:
    transcript = Transcript(BYTES, [], calculator=True)
    pieces = [transcript.take(Token(token, False, -1.0, ())) for token in tokens(*CALL, *RESULT)]
    texts = [piece.text for piece in pieces]
    assert texts == ["[", *"48/2", *[""] * 6, " = 24.0"]
    last = transcript.end()
    assert last.text == "]"
    assert last.calculations == [Calculation(expression="48/2", result="24.0")]
    scored = [each for piece in (*pieces, last) for each in piece.scored]
    names = [each.logprob.token for each in scored]
    assert names == [CALL[0], *"48/2", CALL[2], RESULT[0], *"24.0", RESULT[2]]
    offsets = [each.offset for each in scored]
    assert offsets == sorted(offsets)


def test_the_tokens_of_half_a_result_have_log_probabilities() -> None:
    whole = followed(Transcript(BYTES, [], calculator=True), tokens(*CALL, *RESULT[:2]), -1.0)
    assert whole.text == "[48/2]"
    assert [each.logprob.token for each in whole.scored][-5:] == [RESULT[0], *"24.0"]


def test_a_stop_string_within_a_result_ends_it() -> None:
    whole = followed(Transcript(BYTES, [".0"], calculator=True), tokens(*CALL, *RESULT, "!"), -1.0)
    assert whole.text == "[48/2 = 24"
    assert [each.logprob.token for each in whole.scored][-2:] == ["2", "4"]


def test_a_completion_has_no_brackets() -> None:
    ids = tokens("It is ", *CALL, *RESULT)
    assert followed(Transcript(BYTES, [], calculator=False), ids).text == "It is 48/224.0"


def test_a_stop_string_may_contain_a_bracket_and_lie_across_parts() -> None:
    whole = followed(Transcript(BYTES, ["s [4"], calculator=True), tokens("It is ", *CALL, "!"))
    assert whole.text == "It i"


def test_log_probabilities_belong_to_the_text_that_is_delivered() -> None:
    transcript = Transcript(BYTES, ["mo"], calculator=True)
    whole = followed(transcript, tokens("a moo"), logprob=-1.5)
    assert whole.text == "a "
    assert [each.logprob.token for each in whole.scored] == ["a", " "]
    assert [each.offset for each in whole.scored] == [0, 1]


def test_each_token_has_its_bytes() -> None:
    ids = tokens("é", "<|python_start|>")
    whole = followed(Transcript(BYTES, [], calculator=True), ids, logprob=float("-inf"))
    told = [each.logprob for each in whole.scored]
    assert [each.token for each in told] == ["\\xc3", "\\xa9", "<|python_start|>"]
    assert [each.bytes for each in told] == [[0xC3], [0xA9], None]
    assert {each.logprob for each in told} == {LEAST_LOGPROB}


def test_the_log_probabilities_of_completions() -> None:
    transcript = Transcript(BYTES, [], calculator=False)
    scored = transcript.take(Token(97, False, -1.0, ((98, -0.5), (97, -1.0)))).scored
    told = completion_logprobs(scored, alternatives=True)
    assert told.model_dump() == {
        "tokens": ["a"],
        "token_logprobs": [-1.0],
        "top_logprobs": [{"b": -0.5, "a": -1.0}],
        "text_offset": [0],
    }
    assert completion_logprobs(scored, alternatives=False).top_logprobs is None
