"""mlx-lm and transformers run what is exported for them, and compute the same.

Skipped where they are not installed (extra ``interop``).
"""

import json
from pathlib import Path
from typing import Any

import pytest
from mlx.utils import tree_map
from support.cases import golden
from support.extras import extra
from support.models import BYTES

from mlxchat.checkpoint.history import History
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.engine.cache import KVCache
from mlxchat.interop import exporters
from mlxchat.interop.importers import open_model
from mlxchat.interop.importers.model import read_network
from mlxchat.model.config import ERAS, GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.quantization import Quantization
from mlxchat.quantize import quantize
from mlxchat.runtime import mx
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.tokenizer.messages import Conversation, Message, Part

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # theirs

HISTORY = History(tag="d4", step=7)
PROMPT = [256, *range(150)]  # longer than a short window, and than the context
NEW = 50


def network(era: Any, kv_heads: int = 2) -> SavedModel:
    """A network of an era with random weights, none of them zero."""
    classic = era == "classic"
    config = GPTConfig(
        arch=ERAS[era].arch, era=era, sequence_len=96, vocab_size=BYTES.vocab_size, n_layer=4,
        n_head=4, n_kv_head=kv_heads, n_embd=64, window_pattern="L" if classic else "SSL",
        vocab_multiple=1 if classic else 64,
    )  # fmt: skip
    model, keys = GPT(config), iter(mx.random.split(mx.random.key(1), 64))
    draw = tree_map(lambda w: 0.3 * mx.random.normal(w.shape, key=next(keys)), model.parameters())
    model.update(draw)
    return SavedModel(model, BYTES, False)


def greedy(model: GPT, prompt: list[int]) -> list[int]:
    """The likeliest tokens after a prompt, one by one."""
    cache, ids = KVCache(model.config), mx.array([prompt])
    written = []
    for _ in range(NEW):
        ids = model(ids, cache)[:, -1:].argmax(-1)
        written.append(ids.item())
    return written


def loaded_by_mlx_lm(folder: Path, trust: bool) -> tuple[Any, Any]:
    utils = extra("mlx_lm.utils")
    model, _ = utils.load_model(folder, trust_remote_code=trust)
    return model, utils.load_tokenizer(folder)


@pytest.mark.parametrize("era", list(ERAS))
def test_mlx_lm_computes_the_same(era: Any, tmp_path: Path) -> None:
    step = extra("mlx_lm.generate").generate_step
    ours = network(era)
    exporters.write("mlx-lm", tmp_path / "out", ours, HISTORY, mx.float32)
    theirs, tokenizer = loaded_by_mlx_lm(tmp_path / "out", trust=era != "classic")
    ids = mx.array([PROMPT, PROMPT[::-1]])
    assert mx.abs(theirs(ids) - ours.model(ids)).max().item() < 1e-3
    written = [token for token, _ in step(mx.array(PROMPT), theirs, max_tokens=NEW)]
    assert written == greedy(ours.model, PROMPT)
    in_pieces = step(mx.array(PROMPT), theirs, max_tokens=NEW, prefill_step_size=29)
    assert [token for token, _ in in_pieces] == written
    assert tokenizer.encode("the cat, 日本語") == ours.tokenizer.encode("the cat, 日本語")


def test_mlx_lm_asks_before_it_runs_our_network(tmp_path: Path) -> None:
    extra("mlx_lm")
    exporters.write("mlx-lm", tmp_path / "out", network("modern"), HISTORY, mx.float32)
    with pytest.raises(ValueError, match="trust_remote_code"):
        loaded_by_mlx_lm(tmp_path / "out", trust=False)


@pytest.mark.parametrize("era", ["classic", "lambdas", "modern"])
def test_mlx_lm_writes_several_texts_at_once(era: Any, tmp_path: Path) -> None:
    """Prompts of different lengths, which it pads."""
    batches = extra("mlx_lm.generate").batch_generate
    ours = network(era)
    exporters.write("mlx-lm", tmp_path / "out", ours, HISTORY, mx.float32)
    theirs, tokenizer = loaded_by_mlx_lm(tmp_path / "out", trust=True)
    tokenizer._eos_token_ids = set()
    prompts = [PROMPT, PROMPT[:5], PROMPT[40:100]]
    texts = batches(theirs, tokenizer, prompts, max_tokens=NEW, verbose=False).texts
    for prompt, text in zip(prompts, texts, strict=True):
        assert text == tokenizer.decode(greedy(ours.model, prompt))


@pytest.mark.parametrize("era", ["classic", "modern"])
def test_mlx_lm_computes_the_same_with_few_bits(era: Any, tmp_path: Path) -> None:
    ours = network(era)
    quantize(ours.model, Quantization(bits=4, group_size=32).formats(ours.model.config))
    exporters.write("mlx-lm", tmp_path / "out", ours, HISTORY, mx.float32)
    theirs, _ = loaded_by_mlx_lm(tmp_path / "out", trust=True)
    ids = mx.array([PROMPT])
    assert mx.abs(theirs(ids) - ours.model(ids)).max().item() < 1e-3


@pytest.mark.parametrize("limit", [10**9, 300_000])
def test_transformers_computes_the_same(limit: int, tmp_path: Path) -> None:
    torch = extra("torch")
    transformers = extra("transformers")
    ours = network("classic")
    exporters.write("transformers", tmp_path / "out", ours, HISTORY, mx.float32, limit=limit)
    theirs, told = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not told["missing_keys"] and not told["unexpected_keys"], told
    assert type(theirs).__name__ == "NanoChatForCausalLM" and theirs.dtype == torch.float32
    with torch.no_grad():
        logits = theirs(torch.tensor([PROMPT])).logits
        written = theirs.generate(
            torch.tensor([PROMPT]), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
            eos_token_id=None,
        )  # fmt: skip
    assert mx.abs(mx.array(logits.numpy()) - ours.model(mx.array([PROMPT]))).max().item() < 1e-3
    assert written[0, len(PROMPT) :].tolist() == greedy(ours.model, PROMPT)


@pytest.mark.parametrize(
    "change",
    [
        {"quantization": None, "quantization_config": None, "rope_theta": None},
        {"rope_scaling": {"type": "default"}, "rope_parameters": None},
        {"rope_scaling": {"rope_type": "default"}},
        {"num_key_value_heads": None, "window_pattern": None},
    ],
)
def test_what_transformers_loads_is_imported(change: dict[str, Any], tmp_path: Path) -> None:
    torch = extra("torch")
    transformers = extra("transformers")
    folder = tmp_path / "out"
    exporters.write("transformers", folder, network("classic", 4), HISTORY, mx.float32)
    fields = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(fields))
    weights = folder / "model.safetensors"
    tables = {"model.rotary_emb.inv_freq": mx.zeros(8)}
    mx.save_safetensors(str(weights), {**mx.load(str(weights)), **tables}, {"format": "pt"})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = mx.array(theirs(torch.tensor([PROMPT])).logits.numpy())
    ours = read_network(open_model(folder))
    assert mx.abs(logits - ours(mx.array([PROMPT]))).max().item() < 1e-3


def parsed(conversation: dict[str, Any]) -> Conversation:
    return Conversation(
        tuple(
            Message(m["role"], m["content"])
            if isinstance(m["content"], str)
            else Message(m["role"], tuple(Part(p["type"], p["text"]) for p in m["content"]))
            for m in conversation["messages"]
        )
    )


@pytest.mark.parametrize("program", ["mlx-lm", "transformers"])
def test_chats_are_rendered_as_here(program: Any, tmp_path: Path) -> None:
    transformers = extra("transformers")
    reference = golden("tokenizer.json")
    tokenizer = Tokenizer.train(iter(reference["train_docs"]), reference["vocab_size"])
    config = GPTConfig(vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, n_kv_head=2, n_embd=16)
    out = tmp_path / "out"
    exporters.write(program, out, SavedModel(GPT(config), tokenizer, True), HISTORY, mx.float32)
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    assert theirs.bos_token_id == tokenizer.bos
    cases = zip(
        reference["conversations"], reference["rendered"], reference["render_for_completion"],
        strict=True,
    )  # fmt: skip
    for conversation, expected, to_complete in cases:
        messages = conversation["messages"]
        rendered = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert rendered == expected["ids"] == tokenizer.render(parsed(conversation))[0]
        asked = theirs.apply_chat_template(
            messages[:-1], tokenize=True, add_generation_prompt=True, return_dict=False
        )
        assert asked == to_complete


def said(*messages: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in messages]


CALL = [
    {"type": "text", "text": "It is "},
    {"type": "python", "text": "6*7"},
    {"type": "python_output", "text": "42"},
]
TURNS = ("user", "a"), ("assistant", "b")


@pytest.fixture(scope="module")
def chat_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    transformers = extra("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    BYTES.save(folder, conversational=True)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "messages",
    [
        said(*TURNS, *TURNS),
        said(("system", "Be nice.\n"), *TURNS),
        said(("user", " 6*7? \n"), ("assistant", CALL), *TURNS),
        said(("user", ""), ("assistant", []), ("user", "日本 \u00a0 🤗\r\n"), ("assistant", "")),
    ],
)
def test_what_is_rendered_here_is_rendered_there(messages: Any, chat_tokenizer: Any) -> None:
    ids, _ = BYTES.render(parsed({"messages": messages}))
    rendered = chat_tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert rendered == ids
    asked = chat_tokenizer.apply_chat_template(
        messages[:-1], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert asked == BYTES.render_for_completion(parsed({"messages": messages[:-1]}))


def test_parts_of_text_are_text(chat_tokenizer: Any) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    in_parts = said(("system", parts), ("user", parts), ("assistant", parts))
    assert chat_tokenizer.apply_chat_template(
        in_parts, tokenize=False
    ) == chat_tokenizer.apply_chat_template(
        said(("system", "ab"), ("user", "ab"), ("assistant", "ab")), tokenize=False
    )


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        (said(), "empty conversation|no message from a user"),
        (said(("system", "s")), "no message from a user"),
        (said(("user", "a"), ("user", "b")), "Message 2 .* role user, not assistant"),
        (said(("assistant", "a")), "Message 1 .* role assistant, not user"),
        (said(("user", "a"), ("tool", "42")), "Message 2 .* role tool, not assistant"),
        (said(("system", "a"), ("system", "b"), *TURNS), "Message 2 .* role system, not user"),
        (said(*TURNS, ("system", "s")), "Message 3 .* role system, not user"),
        (said(("user", [{"type": "image", "url": "x"}])), "Message 1 .* of type image"),
        (said(("user", CALL)), "Message 1 .* part of type python"),
        (said(("user", "a"), ("assistant", None)), "Message 2 .* neither text nor parts"),
        (said(("user", {"type": "text", "text": "a"})), "Message 1 .* neither text nor parts"),
    ],
)
def test_what_is_refused_here_is_refused_there(
    messages: Any, fault: str, chat_tokenizer: Any
) -> None:
    with pytest.raises(Exception, match=fault):  # jinja's
        chat_tokenizer.apply_chat_template(messages, tokenize=True)


def test_an_answered_conversation_is_not_completed(chat_tokenizer: Any) -> None:
    with pytest.raises(Exception, match="ends with an answer"):
        chat_tokenizer.apply_chat_template(said(*TURNS), add_generation_prompt=True)


def test_texts_are_encoded_as_here(tmp_path: Path) -> None:
    transformers = extra("transformers")
    reference = golden("tokenizer.json")
    tokenizer = Tokenizer.train(iter(reference["train_docs"]), reference["vocab_size"])
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in reference["probes"]:
        if any(name in text for name in reference["special_tokens"]):
            continue  # plain text here, special there
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text
