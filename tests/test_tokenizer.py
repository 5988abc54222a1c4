"""The tokenizer against nanochat's: training, ids, rendering; and its file against `tokenizers`."""

import base64
from pathlib import Path

import pytest
import tokenizers
from conftest import golden

from mlxchat.data.conversations import Conversation, Message
from mlxchat.data.tokenizer import (
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
    Tokenizer,
    train,
)
from mlxchat.errors import MlxchatError

GOLDEN = golden("tokenizer.json")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(GOLDEN["train_docs"], GOLDEN["train_vocab_size"])


def conversations() -> list[tuple[Conversation, int]]:
    """The golden conversations that are text throughout, with their indices."""
    found = []
    for i, conversation in enumerate(GOLDEN["conversations"]):
        messages = [Message(m["role"], m["content"]) for m in conversation["messages"]]
        if all(isinstance(message.content, str) for message in messages):
            found.append((Conversation(tuple(messages)), i))
    return found


def test_constants_are_nanochats() -> None:
    assert GOLDEN["split_pattern"] == SPLIT_PATTERN
    assert GOLDEN["special_tokens"] == list(SPECIAL_TOKENS)


def test_training_gives_nanochats_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == GOLDEN["vocab_size"]
    for name, token in GOLDEN["special_ids"].items():
        assert tokenizer.special(name) == token
        assert tokenizer.token_bytes(token) == b""
    for token in range(tokenizer.special("<|bos|>")):
        assert tokenizer.token_bytes(token) == base64.b64decode(GOLDEN["decoded_tokens_b64"][token])


def test_encoding_is_nanochats_and_decodes_back(tokenizer: Tokenizer) -> None:
    for probe, ids in zip(GOLDEN["probes"], GOLDEN["encodings"], strict=True):
        assert tokenizer.encode(probe) == ids
        assert tokenizer.decode(ids) == probe
    batch = tokenizer.encode_documents(GOLDEN["probes"], threads=2)
    assert batch == [[tokenizer.bos, *ids] for ids in GOLDEN["encodings"]]


def test_rendering_is_nanochats(tokenizer: Tokenizer) -> None:
    for conversation, i in conversations():
        ids, mask = tokenizer.render(conversation)
        assert ids == GOLDEN["rendered"][i]["ids"]
        assert mask == GOLDEN["rendered"][i]["mask"]
        assert tokenizer.encode_documents([conversation], threads=1) == [ids]
        question = Conversation(conversation.messages[:-1])
        assert tokenizer.render_for_completion(question) == GOLDEN["render_for_completion"][i]


def test_turns_must_alternate(tokenizer: Tokenizer) -> None:
    with pytest.raises(MlxchatError, match="Message 1 of a conversation is the assistant's"):
        tokenizer.render(Conversation((Message("assistant", "hello"),)))


def test_saved_and_loaded(tokenizer: Tokenizer, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {"vocab": 3}}'])
def test_a_file_that_is_no_tokenizer(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(MlxchatError, match="is not a byte-level BPE tokenizer"):
        Tokenizer.load(tmp_path)


def test_no_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MlxchatError) as raised:
        Tokenizer.load(tmp_path)
    assert "mlxchat tokenizer train" in raised.value.remedy


def test_a_vocabulary_without_room_for_bytes() -> None:
    with pytest.raises(MlxchatError, match="264 tokens is too small"):
        train(["text"], 264)
