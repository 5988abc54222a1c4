import re
from collections.abc import Callable, Sequence

import pytest
from support.cases import GOLDEN, golden
from support.chats import ids_of
from support.models import BYTES

from mlxchat.config.inference import Sampling
from mlxchat.engine.cache import KVCache
from mlxchat.engine.generate import Tool, continue_greedily, generate, generate_batch
from mlxchat.engine.sampling import apply_repetition_penalty, make_sampler
from mlxchat.engine.tools import ToolUse
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx

NEVER: frozenset[int] = frozenset()
KEY = mx.random.key(0)


# Which tokens are forced


def completed(text: str) -> str:
    """Return a text with all forced tokens inserted, as if a model drew its other letters."""
    tool, said = ToolUse(BYTES), []
    for token in ids_of(text):
        while token is not None:
            said.append(token)
            token = tool(token)
    names = {BYTES.special(name): name for name in set(re.findall(r"<\|\w+\|>", text))}
    names |= {BYTES.special(f"<|output_{end}|>"): f"<|output_{end}|>" for end in ("start", "end")}
    return "".join(names.get(token) or BYTES.token_bytes(token).decode() for token in said)


@pytest.mark.parametrize("expression", ["1/0", "", "two", "9**9**9", "1<|user_end|>+1"])
def test_without_a_result_nothing_is_forced(expression: str) -> None:
    text = f"So <|python_start|>{expression}<|python_end|> is it."
    assert completed(text) == text


def test_results_follow_their_expressions() -> None:
    given = "48/2 <|python_start|>48/2<|python_end|><|python_start|>1,000*3<|python_end|>."
    assert completed(given) == (
        "48/2 <|python_start|>48/2<|python_end|><|output_start|>24.0<|output_end|>"
        "<|python_start|>1,000*3<|python_end|><|output_start|>3000<|output_end|>."
    )


def test_an_end_without_a_beginning_forces_nothing() -> None:
    text = "1+1<|python_end|> <|python_start|>2+2<|python_end|>"
    assert completed(text) == f"{text}<|output_start|>4<|output_end|>"
    assert completed("<|python_start|>1<|python_end|>+1<|python_end|>").count("output_end") == 1


def test_a_second_beginning_starts_the_call_over() -> None:
    text = "<|python_start|>1+<|python_start|>2<|python_end|>"
    assert completed(text) == f"{text}<|output_start|>2<|output_end|>"


# Forced tokens in what a model generates


@pytest.fixture(scope="module", params=["classic", "modern"])
def model(request: pytest.FixtureRequest) -> GPT:
    case = golden(f"{request.param}/case.json")
    model = GPT(GPTConfig(arch=case["arch"], **case["config"]))
    model.load_weights(str(GOLDEN / case["arch"] / "weights.safetensors"))
    return model


PROMPTS = [
    mx.random.randint(0, 97, (n,), key=k).tolist()
    for n, k in zip((3, 20, 1, 9), mx.random.split(KEY, 4), strict=True)
]


def rigged() -> Tool:
    """Make a tool that forces 7 and 8 after every fourth token, and 0 after every ninth."""
    count = 0

    def tool(token: int) -> int | None:
        nonlocal count
        count += 1
        return {0: 7, 1: 8}.get(count % 4) if count % 9 else 0

    return tool


def by_hand(
    model: GPT,
    ids: Sequence[int],
    count: int,
    penalty: float = 1.0,
    tools: Callable[[], Tool] = rigged,
) -> tuple[list[int], set[int]]:
    """Return the tokens after ``ids``, by a whole pass for each, and the drawn ones replaced."""
    said, replaced, forced, tool = list(ids), set(), None, tools()
    for _ in range(count):
        seen = mx.array([token in said for token in range(model.config.vocab_size)])
        logits = apply_repetition_penalty(model(mx.array([said]))[0, -1], seen, penalty)
        drawn = int(mx.argmax(logits))
        if forced is not None:
            replaced.add(drawn)
        said.append(drawn if forced is None else forced)
        forced = tool(said[-1])
    return said[len(ids) :], replaced


def alone(model: GPT, ids: Sequence[int], stop: frozenset[int], count: int = 24) -> list[int]:
    cache = KVCache(model.config)
    tokens = generate(model, ids, cache, stop=stop, max_tokens=count, tools=rigged)
    return list(tokens)


@pytest.mark.slow
def test_forced_tokens_are_read_like_others(model: GPT) -> None:
    expected = [by_hand(model, ids, 24)[0] for ids in PROMPTS]
    assert [alone(model, ids, NEVER) for ids in PROMPTS] == expected
    assert continue_greedily(model, PROMPTS, NEVER, 24, rigged) == expected
    assert all(tokens[4:6] == [7, 8] for tokens in expected)
    assert expected != continue_greedily(model, PROMPTS, NEVER, 24)


def test_a_stop_token_drawn_where_another_is_forced_does_not_stop(model: GPT) -> None:
    for ids in PROMPTS:
        said, replaced = by_hand(model, ids, 24)
        if stop := frozenset(replaced - {*said}):
            assert alone(model, ids, stop) == said
            assert continue_greedily(model, [ids], stop, 24, rigged) == [said]
            return
    pytest.fail("no prompt has a token that is drawn only where another is forced")


@pytest.mark.slow
def test_rows_that_have_ended_call_no_tool(model: GPT) -> None:
    texts = [by_hand(model, ids, 24)[0] for ids in PROMPTS]
    stop = frozenset({texts[0][2], texts[1][11]})
    called: list[list[int]] = []

    def noting() -> Tool:
        tool, tokens = rigged(), list[int]()
        called.append(tokens)
        return lambda token: tokens.append(token) or tool(token)

    together = continue_greedily(model, PROMPTS, stop, 24, noting)
    assert together == [alone(model, ids, stop) for ids in PROMPTS]
    assert len({len(tokens) for tokens in together}) > 1
    assert called == together


def test_the_cache_holds_forced_tokens_and_continues(model: GPT) -> None:
    ids, cache = PROMPTS[1], KVCache(model.config)
    tokens = generate(model, ids, cache, stop=NEVER, max_tokens=6, tools=rigged)
    said = list(tokens)
    assert cache.offset == len(ids) + 6
    again = generate(model, [11], cache, stop=NEVER, max_tokens=8, tools=rigged)
    assert list(again) == by_hand(model, [*ids, *said, 11], 8)[0]


@pytest.mark.slow
def test_the_penalty_counts_forced_tokens_and_not_those_they_replace(model: GPT) -> None:
    expected = [by_hand(model, ids, 24, penalty=1e6)[0] for ids in PROMPTS]
    assert any({*by_hand(model, ids, 24, penalty=1e6)[1]} & {*said} for ids, said in
               zip(PROMPTS, expected, strict=True))  # fmt: skip
    never_again = {"stop": NEVER, "max_tokens": 24, "repetition_penalty": 1e6, "tools": rigged}
    steps = generate_batch(model, PROMPTS, **never_again)
    assert [list(tokens) for tokens in zip(*steps, strict=True)] == expected
    cache = KVCache(model.config)
    tokens = generate(model, PROMPTS[0], cache, **never_again)
    assert list(tokens) == expected[0]


def test_a_tool_that_forces_nothing_changes_nothing(model: GPT) -> None:
    def drawn(tools: Callable[[], Tool] | None) -> list[list[int | None]]:
        hot = make_sampler(Sampling(temperature=1.5))
        steps = generate_batch(model, PROMPTS, hot, key=KEY, stop=NEVER, max_tokens=12, tools=tools)
        return list(steps)

    assert drawn(lambda: lambda token: None) == drawn(None)
