"""nanochat's tokenizer.pkl is read as data, and written as nanochat reads it."""

import base64
import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from support.hostile_pickles import greedy, malformed, running, text
from support.places import SHARED, needs_shared

from mlxchat.errors import MlxchatError
from mlxchat.interop import nanochat_files, pickles
from mlxchat.tokenizer.bpe import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer

TOKENIZERS = SHARED / "data" / "tokenizers"
TEXTS = ["the cat sat on the mat", "日本語 🇫🇷 naïve", " a  b\r\n\t12345"]
RANKS = {bytes([byte]): byte for byte in range(256)}
SPECIAL = {name: 256 + index for index, name in enumerate(SPECIAL_TOKENS)}
STATE = {
    "name": "rustbpe",
    "pat_str": SPLIT_PATTERN,
    "mergeable_ranks": RANKS,
    "special_tokens": SPECIAL,
}


def pickled(state: Any, protocol: int = 4) -> bytes:
    """What pickle makes of an encoding with such a state, whatever that is."""
    make = b"ctiktoken.core\nEncoding\n)\x81"
    plain = pickle.dumps(state, protocol)
    body = plain[11:] if plain[2:3] == pickle.FRAME else plain[2:]
    return plain[:2] + make + body[:-1] + b"b."


def assert_refused(path: Path, data: bytes) -> MlxchatError:
    path.write_bytes(data)
    with pytest.raises(MlxchatError) as caught:
        nanochat_files.read_tokenizer(path)
    error = caught.value
    assert str(path) in error.problem and error.remedy
    assert error.problem.isprintable() and len(error.problem) < 500
    return error


def same(a: Tokenizer, b: Tokenizer) -> bool:
    ids = range(a.vocab_size)
    return (
        a.vocab_size == b.vocab_size
        and all(a.token_bytes(token) == b.token_bytes(token) for token in ids)
        and all(a.special(name) == b.special(name) for name in SPECIAL_TOKENS)
        and all(a.encode(text) == b.encode(text) for text in TEXTS)
    )


@needs_shared
def test_a_tokenizer_of_nanochat_keeps_its_ids() -> None:
    tokenizer = nanochat_files.read_tokenizer(TOKENIZERS / "nanochat_65536_a.pkl")
    cases = json.loads((TOKENIZERS / "reference_ids.json").read_text("utf-8"))["cases"]
    assert len(cases) == 15
    for case in cases:
        assert tokenizer.encode(case["text"]) == case["ids"]["nanochat_65536_a"]
    facts = json.loads((TOKENIZERS / "nanochat_65536_a.json").read_text("utf-8"))
    assert {name: tokenizer.special(name) for name in SPECIAL_TOKENS} == facts["special_tokens"]


@needs_shared
def test_a_tokenizer_of_nanochat_encodes_a_megabyte_as_tiktoken() -> None:
    tokenizer = nanochat_files.read_tokenizer(TOKENIZERS / "nanochat_65536_a.pkl")
    lines = (TOKENIZERS / "nanochat_65536_a.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    assert all(tokenizer.token_bytes(rank) == token for token, rank in ranks.items())
    assert tokenizer.vocab_size == len(ranks) + len(SPECIAL_TOKENS)
    reference = tiktoken.Encoding(
        "ranks", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    shard = SHARED / "data" / "base_data" / "shard_00000.parquet"
    documents = pq.read_table(shard)["text"].to_pylist()
    text = "\n".join(documents)[: 2**20]
    assert len(text) == 2**20
    assert tokenizer.encode(text) == reference.encode_ordinary(text)


@needs_shared
def test_a_tokenizer_of_nanochat_is_written_as_it_was(tmp_path: Path) -> None:
    source = TOKENIZERS / "nanochat_65536_a.pkl"
    nanochat_files.write_tokenizer(
        tmp_path / "tokenizer.pkl", nanochat_files.read_tokenizer(source)
    )
    written = pickle.loads((tmp_path / "tokenizer.pkl").read_bytes())
    assert written.__getstate__() == pickle.loads(source.read_bytes()).__getstate__()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_written_by_tiktoken_is_read(protocol: int, tmp_path: Path) -> None:
    encoding = tiktoken.Encoding(**STATE)
    path = tmp_path / "tokenizer.pkl"
    if protocol == 2:  # which has no bytes: they are made by a call
        assert "_codecs.encode" in assert_refused(path, pickle.dumps(encoding, 2)).problem
        return
    path.write_bytes(pickle.dumps(encoding, protocol))
    assert same(nanochat_files.read_tokenizer(path), Tokenizer(RANKS, SPLIT_PATTERN, SPECIAL))


def test_a_written_tokenizer_is_a_tiktoken_encoding(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(TEXTS * 9, 300)
    path = tmp_path / "tokenizer.pkl"
    nanochat_files.write_tokenizer(path, tokenizer)
    encoding = pickle.loads(path.read_bytes())
    assert type(encoding) is tiktoken.Encoding
    assert encoding.n_vocab == tokenizer.vocab_size
    assert encoding.special_tokens_set == set(SPECIAL_TOKENS)
    for sample in TEXTS:
        assert encoding.encode_ordinary(sample) == tokenizer.encode(sample)
    assert same(nanochat_files.read_tokenizer(path), tokenizer)
    first = path.read_bytes()
    nanochat_files.write_tokenizer(path, tokenizer)
    assert path.read_bytes() == first


def test_the_name_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickled(STATE | {"name": "gpt2"}))
    assert nanochat_files.read_tokenizer(tmp_path / "a.pkl").vocab_size == 265


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": None}, "name"),
        ({"extra": 1}, "extra"),
        ({"ex\ntra" * 99: 1}, "Extra"),
        ({"pat_str": b"x"}, "pat_str"),
        ({"pat_str": "("}, "not split as"),
        ({"pat_str": "(" * 9999}, "not split as"),
        ({"pat_str": ""}, "not split as"),
        ({"mergeable_ranks": []}, "mergeable_ranks"),
        ({"mergeable_ranks": {}}, "each once"),
        ({"mergeable_ranks": RANKS | {b"ab": 0}}, "each once"),
        ({"mergeable_ranks": RANKS | {b"ab": 265.0}}, "mergeable_ranks"),
        ({"mergeable_ranks": RANKS | {b"a": True}}, "mergeable_ranks"),
        ({"mergeable_ranks": RANKS | {"ab": 265}}, "mergeable_ranks"),
        ({"mergeable_ranks": RANKS | {b"ab": -1}}, "each once"),
        ({"mergeable_ranks": RANKS | {b"ab": 2**40}}, "each once"),
        ({"mergeable_ranks": RANKS | {b"": 265}}, "an empty token"),
        ({"mergeable_ranks": {b"ab" if t == b"q" else t: r for t, r in RANKS.items()}}, "byte"),
        ({"special_tokens": {}}, "<|bos|>"),
        ({"special_tokens": {"<|bos|>": 256}}, "<|user_start|>"),
        ({"special_tokens": SPECIAL | {"<|more|>": 7}}, "each once"),
        ({"special_tokens": {b"x": 1}}, "special_tokens"),
    ],
)
def test_other_tokenizers_are_refused(change: dict[Any, Any], said: str, tmp_path: Path) -> None:
    assert said in assert_refused(tmp_path / "a.pkl", pickled(STATE | change)).problem


@pytest.mark.parametrize("state", ["gpt2", None, 7, [], {}, {"name": "a"}, (STATE, None)])
def test_other_states_are_refused(state: Any, tmp_path: Path) -> None:
    assert_refused(tmp_path / "a.pkl", pickled(state))


@pytest.mark.parametrize(
    "program",
    [
        pickle.dumps(STATE),
        b"ctiktoken.core\nEncoding\n.",
        b"ctiktoken.core\nEncoding\n)\x81.",
        b"ctiktoken.core\nEncoding\n(K\x00t\x81}b.",
        b"ctiktoken.core\nEncoding.__init__.__globals__\n.",
        b"ctiktoken.registry\nget_encoding\n" + text("gpt2") + b"\x85R.",
        b"ctiktoken\nEncoding\n)\x81}b.",
    ],
)
def test_other_pickles_are_refused(program: bytes, tmp_path: Path) -> None:
    assert_refused(tmp_path / "a.pkl", program)


@pytest.mark.parametrize("name", [*running(Path()), *greedy(), *malformed()])
def test_hostile_pickles_are_refused_and_not_run(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    program = (running(marker) | greedy() | malformed())[name]
    assert_refused(tmp_path / "a.pkl", program)
    state = program[:-1] if program.endswith(pickle.STOP) else program
    assert_refused(tmp_path / "a.pkl", b"ctiktoken.core\nEncoding\n)\x81" + state + b"b.")
    assert not marker.exists()


def test_files_that_cannot_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MlxchatError, match="No such file"):
        nanochat_files.read_tokenizer(tmp_path / "a.pkl")
    monkeypatch.setattr(pickles, "MOST_BYTES", 100)
    assert "100 bytes" in assert_refused(tmp_path / "a.pkl", pickled(STATE)).problem


@pytest.mark.slow
def test_truncated_files_are_refused(tmp_path: Path) -> None:
    content = pickle.dumps(tiktoken.Encoding(**STATE), 4)
    for end in range(len(content)):
        assert_refused(tmp_path / "a.pkl", content[:end])


CONTENT = pickle.dumps(tiktoken.Encoding(**STATE), 4)
PLACES = st.integers(0, 200) | st.integers(0, len(CONTENT) - 1)


@given(st.lists(st.tuples(PLACES, st.integers(1, 255)), min_size=1, max_size=3))
def test_changed_files_are_refused_or_a_tokenizer(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(CONTENT)
    for place, change in changes:
        content[place] ^= change
    path = tmp_path_factory.getbasetemp() / "changed.pkl"
    path.write_bytes(content)
    try:
        tokenizer = nanochat_files.read_tokenizer(path)
    except MlxchatError as error:
        assert error.problem.isprintable() and error.remedy
        return
    ids = range(tokenizer.vocab_size)
    assert {bytes([byte]) for byte in range(256)} <= {tokenizer.token_bytes(i) for i in ids}
    assert {tokenizer.special(name) for name in SPECIAL_TOKENS} <= set(ids)
