"""The tokenizer against nanochat's: training, ids, rendering; and its file against `tokenizers`."""

import base64
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from pydantic import TypeAdapter
from support.cases import golden

from mlxchat.errors import DataError, MlxchatError
from mlxchat.tokenizer import safeguards
from mlxchat.tokenizer.bpe import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer
from mlxchat.tokenizer.messages import Conversation, Message, Part, Role

GOLDEN = golden("tokenizer.json")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(GOLDEN["train_docs"], GOLDEN["train_vocab_size"])


CONVERSATIONS = [
    TypeAdapter(Conversation).validate_python(stored) for stored in GOLDEN["conversations"]
]


def said(*messages: tuple[Role, str]) -> Conversation:
    return Conversation(tuple(Message(role, text) for role, text in messages))


@pytest.mark.parametrize("end", ["", "x", "!", "1", "\n", "\n  x", "\u00a0", " '"])
@pytest.mark.parametrize("begin", ["", "cow", "!", "!\n", "1 \r\n"])
def test_long_blanks_are_encoded_as_the_pattern_would(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, begin: str, end: str
) -> None:
    monkeypatch.setattr(safeguards, "LONG_RUN", 5)
    pattern = safeguards._LONG_BLANKS.pattern.replace("100000", "5")
    monkeypatch.setattr(safeguards, "_LONG_BLANKS", re.compile(pattern))
    for blanks in (" " * 5, " " * 37, "\t \u3000\x85 \u2028", "\x0b\x0c" * 9, "      \n      "):
        text = f"{begin}{blanks}{end}{blanks}{end}"
        assert tokenizer.encode(text) == tokenizer._encoding.encode_ordinary(text), text


@pytest.mark.parametrize("blank", [" ", "\t", "\u3000"])
def test_a_million_blanks_are_encoded(tokenizer: Tokenizer, blank: str) -> None:
    """tiktoken panics at 1,000,000 of them."""
    text = f"cow\n{1_000_001 * blank}x"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_documents([text, "cow"], threads=2) == [
        [tokenizer.bos, *ids],
        [tokenizer.bos, *tokenizer.encode("cow")],
    ]


def test_blanks_just_short_of_a_long_run_are_quick(tokenizer: Tokenizer) -> None:
    """Looking for a long run from each of them would take half a minute."""
    text = 3 * (" " * (safeguards.LONG_RUN - 1) + "\n")
    started = time.perf_counter()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert time.perf_counter() - started < 10


def test_a_million_blanks_are_trained_on() -> None:
    trained = Tokenizer.train([1_100_000 * " " + "cow", "cow"], vocab_size=268)
    assert b"  " in trained.ranks


def test_special_tokens_are_decoded_if_asked_for(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.bos, *tokenizer.encode("cow é"), tokenizer.special("<|output_end|>")]
    assert tokenizer.decode(ids) == "cow é"
    assert tokenizer.decode(ids, keep_special=True) == "<|bos|>cow é<|output_end|>"
    assert tokenizer._encoding.decode(ids) == "<|bos|>cow é<|output_end|>"


def test_a_panic_is_an_error(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safeguards, "LONG_RUN", 10**9)  # so that tiktoken gets all of it
    with pytest.raises(DataError, match=r"tiktoken or rustbpe cannot process"):
        tokenizer.encode(1_100_000 * " " + "x")


def test_constants_equal_nanochats() -> None:
    assert GOLDEN["split_pattern"] == SPLIT_PATTERN
    assert GOLDEN["special_tokens"] == list(SPECIAL_TOKENS)


def test_training_finds_the_same_tokens_as_nanochat(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == GOLDEN["vocab_size"]
    for name, token in GOLDEN["special_ids"].items():
        assert tokenizer.special(name) == token
        assert tokenizer.token_bytes(token) == b""
    for token in range(tokenizer.special("<|bos|>")):
        assert tokenizer.token_bytes(token) == base64.b64decode(GOLDEN["decoded_tokens_b64"][token])


def test_encoding_equals_nanochats_and_decodes_back(tokenizer: Tokenizer) -> None:
    for probe, ids in zip(GOLDEN["probes"], GOLDEN["encodings"], strict=True):
        assert tokenizer.encode(probe) == ids
        assert tokenizer.decode(ids) == probe
    batch = tokenizer.encode_documents(GOLDEN["probes"], threads=2)
    assert batch == [[tokenizer.bos, *ids] for ids in GOLDEN["encodings"]]


def test_the_golden_conversations_have_a_system_message_and_every_part() -> None:
    messages = [message for conversation in CONVERSATIONS for message in conversation.messages]
    assert {message.role for message in messages} == {"system", "user", "assistant"}
    parts = {part.type for message in messages for part in message.parts}
    assert parts == {"text", "python", "python_output"}


@pytest.mark.parametrize("i", range(len(CONVERSATIONS)))
def test_rendering_equals_nanochats(tokenizer: Tokenizer, i: int) -> None:
    ids, mask = tokenizer.render(CONVERSATIONS[i])
    assert ids == GOLDEN["rendered"][i]["ids"]
    assert mask == GOLDEN["rendered"][i]["mask"]
    assert tokenizer.encode_documents([CONVERSATIONS[i]], threads=1) == [ids]
    question = Conversation(CONVERSATIONS[i].messages[:-1])
    assert tokenizer.render_for_completion(question) == GOLDEN["render_for_completion"][i]


def test_the_mask_covers_what_the_assistant_says(tokenizer: Tokenizer) -> None:
    parts = (Part("text", "a"), Part("python", "1+1"), Part("python_output", "2"), Part("text", ""))
    ids, mask = tokenizer.render(
        Conversation((Message("user", "sum"), Message("assistant", parts)))
    )
    learned = [token for token, learn in zip(ids, mask, strict=True) if learn]
    start, end, last = (
        tokenizer.special(f"<|{name}|>") for name in ("python_start", "python_end", "assistant_end")
    )
    assert learned == [*tokenizer.encode("a"), start, *tokenizer.encode("1+1"), end, last]


def test_a_text_is_a_single_part() -> None:
    assert Message("assistant", "Hi").parts == (Part("text", "Hi"),)
    assert Message("assistant", (Part("text", "6*7="), Part("python", "6*7"))).text == "6*7=6*7"


@pytest.mark.parametrize("role", ["system", "user"])
def test_only_assistant_messages_have_parts(role: Role) -> None:
    with pytest.raises(ValueError, match=f"a {role} message is text"):
        Message(role, (Part("text", "Hi"),))


@pytest.mark.parametrize(
    ("conversation", "fault"),
    [
        (
            said(("assistant", "a")),
            "Message 1 of a conversation is the assistant's, not the user's",
        ),
        (
            said(("user", "a"), ("user", "b")),
            "Message 2 of a conversation is the user's, not the a",
        ),
        (said(("system", "s"), ("assistant", "a")), "Message 2 .* the assistant's, not the user's"),
        (said(("system", "s"), ("user", "a"), ("user", "b")), "Message 3 .* the user's, not the a"),
        (said(("user", "a"), ("system", "s")), "Message 2 .* the system's, not the assistant's"),
        (said(("system", "s")), "no message from a user"),
        (said(), "no message from a user"),
    ],
)
def test_turns_must_alternate(tokenizer: Tokenizer, conversation: Conversation, fault: str) -> None:
    with pytest.raises(MlxchatError, match=fault):
        tokenizer.render(conversation)


def test_an_answered_conversation_is_not_completed(tokenizer: Tokenizer) -> None:
    with pytest.raises(MlxchatError, match="ends with an answer"):
        tokenizer.render_for_completion(CONVERSATIONS[0])


def test_a_saved_tokenizer_is_loaded_unchanged(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert "chat_template" not in (tmp_path / "tokenizer_config.json").read_text()
    assert again.byte_lengths() == tokenizer.byte_lengths()
    for probe, ids in zip(GOLDEN["probes"], GOLDEN["encodings"], strict=True):
        assert again.encode(probe) == ids
    tokenizer.save(tmp_path, conversational=True)
    assert "chat_template" in (tmp_path / "tokenizer_config.json").read_text()


def test_the_tokenizers_library_reads_the_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    other.encode_special_tokens = True  # as text, as ours does
    assert other.get_vocab_size() == tokenizer.vocab_size
    unseen = ["Ünïcödé ⅷ 12345 __init__\n\n\t x", "나는 학생입니다 🤦🏽‍♂️", "a\r\nb   c\u00a0d"]
    for text in [*GOLDEN["probes"], *unseen]:
        assert other.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)
        assert other.decode(tokenizer.encode(text)) == text


def test_special_tokens_in_text_are_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a <|bos|> b")
    assert tokenizer.bos not in ids
    assert tokenizer.decode(ids) == "a <|bos|> b"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {"vocab": 3}}', "[" * 10**5])
def test_a_file_that_is_not_a_tokenizer_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(MlxchatError, match="is not a byte-level BPE tokenizer"):
        Tokenizer.load(tmp_path)


def damage(folder: Path, kind: str) -> None:
    path = folder / "tokenizer.json"
    stored = json.loads(path.read_text("utf-8"))
    vocabulary = stored["model"]["vocab"]
    match kind:
        case "id":
            stored["added_tokens"][0]["id"] = 100_000
        case "doubled" | "giant" | "negative" | "fraction" | "true":
            wrong = {"doubled": 66, "giant": 2**80, "negative": -1, "fraction": 65.5, "true": True}
            vocabulary["ab" if "ab" in vocabulary else "B"] = wrong[kind]
        case "nothing":
            vocabulary[""] = 412
        case "byte":
            moved = vocabulary.pop("A")
            vocabulary["Never seen"] = moved
        case "list":
            stored["model"]["vocab"] = list(vocabulary)
        case "pattern":
            stored["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(("
    path.write_text(json.dumps(stored), "utf-8")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("id", "has ids that are not 0 to 411"),
        ("doubled", "is not a byte-level BPE tokenizer"),
        ("giant", "is not a byte-level BPE tokenizer"),
        ("negative", "is not a byte-level BPE tokenizer"),
        ("fraction", "is not a byte-level BPE tokenizer"),
        ("true", "is not a byte-level BPE tokenizer"),
        ("nothing", "has an empty token"),
        ("byte", "is not a byte-level BPE tokenizer|no token for the byte 65"),
        ("list", "is not a byte-level BPE tokenizer"),
        ("pattern", "is not a byte-level BPE tokenizer"),
    ],
)
def test_a_damaged_file_is_named(
    kind: str, message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    damage(tmp_path, kind)
    with pytest.raises(MlxchatError, match=message):
        Tokenizer.load(tmp_path)


def changed(stored: dict[str, Any], kind: str) -> None:
    """What makes other ids of a text than ranks, pattern and special tokens do."""
    before, model = stored["pre_tokenizer"], stored["model"]
    first, second = before["pretokenizers"]
    lower = {"type": "Lowercase"}
    match kind:
        case "normalizer":
            stored["normalizer"] = {"type": "Sequence", "normalizers": [lower]}
        case "second split":
            before["pretokenizers"] = [first, first, second]
        case "no sequence":
            stored["pre_tokenizer"] = second
        case "prefix space":
            second["add_prefix_space"] = True
        case "regex":
            second["use_regex"] = True
        case "removed":
            first["behavior"] = "Removed"
        case "inverted":
            first["invert"] = True
        case "pattern" | "empty":
            first["pattern"]["Regex"] = {"pattern": "x", "empty": ""}[kind]
        case "literal":
            first["pattern"] = {"String": "x"}
        case "reversed":
            model["merges"].reverse()
        case "fewer":
            del model["merges"][3]
        case "other":
            model["merges"][3] = ["Q", "Z"]
        case "wordpiece":
            model["type"] = "WordPiece"
        case "dropout":
            model["dropout"] = 0.1
        case "suffix":
            model["end_of_word_suffix"] = "</w>"
        case "added":
            stored["added_tokens"][0]["special"] = False


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("normalizer", "normalizer"),
        ("second split", "pretokenizers"),
        ("no sequence", "pre_tokenizer"),
        ("prefix space", "add_prefix_space"),
        ("regex", "use_regex"),
        ("removed", "behavior"),
        ("inverted", "invert"),
        ("pattern", "text is not split as in nanochat"),
        ("empty", "text is not split as in nanochat"),
        ("literal", "pattern"),
        ("reversed", "not in the order"),
        ("fewer", "do not match the ids"),
        ("other", "not in the order"),
        ("wordpiece", "model.type"),
        ("dropout", "dropout"),
        ("suffix", "end_of_word_suffix"),
        ("added", "special"),
    ],
)
def test_a_file_that_would_encode_differently_is_refused(
    kind: str, said: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    stored = json.loads(path.read_text("utf-8"))
    changed(stored, kind)
    path.write_text(json.dumps(stored), "utf-8")
    with pytest.raises(MlxchatError) as raised:
        Tokenizer.load(tmp_path)
    assert said in raised.value.problem and "\n" not in raised.value.problem


def test_other_forms_of_the_same_tokenizer_are_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Merges as text, and all pairs that make a token, as transformers writes them."""
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    stored = json.loads(path.read_text("utf-8"))
    known = stored["model"]["vocab"]
    pairs = [
        (token[:i], token[i:])
        for token in sorted(known.keys() - tokenizer.special_tokens.keys(), key=known.__getitem__)
        for i in range(1, len(token))
        if token[:i] in known and token[i:] in known
    ]
    assert len(pairs) > len(stored["model"]["merges"])
    for merges in ([" ".join(pair) for pair in pairs], pairs):
        stored["model"] |= {"merges": merges, "ignore_merges": False}
        path.write_text(json.dumps(stored), "utf-8")
        other = tokenizers.Tokenizer.from_file(str(path))
        other.encode_special_tokens = True
        for probe in GOLDEN["probes"]:
            assert Tokenizer.load(tmp_path).encode(probe) == tokenizer.encode(probe)
            assert other.encode(probe, add_special_tokens=False).ids == tokenizer.encode(probe)


def test_nanochats_files_of_the_tokenizers_library_are_read(tmp_path: Path) -> None:
    parts = tokenizers.pre_tokenizers
    other = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, fuse_unk=False))
    split = parts.Split(tokenizers.Regex(SPLIT_PATTERN), "isolated", False)
    letters = parts.ByteLevel(add_prefix_space=False, use_regex=False)
    other.pre_tokenizer = parts.Sequence([split, letters])
    other.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=parts.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL_TOKENS),
    )  # fmt: skip
    other.train_from_iterator(GOLDEN["train_docs"], trainer)
    other.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.load(tmp_path)
    for text in GOLDEN["train_docs"]:
        assert ours.encode(text) == other.encode(text, add_special_tokens=False).ids


def test_the_error_of_a_missing_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MlxchatError) as raised:
        Tokenizer.load(tmp_path)
    assert "mlxchat tokenizer train" in raised.value.remedy


def test_a_vocabulary_without_room_for_bytes_is_refused() -> None:
    with pytest.raises(MlxchatError, match="264 tokens is too small"):
        Tokenizer.train(["text"], 264)
