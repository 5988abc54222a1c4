"""CORE as nanochat's own code computes it on two models of random weights, and those models."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mlxchat.checkpoint.layout import SavedModel
from mlxchat.evaluate.core_tasks import (
    ChoiceItem,
    CompletionItem,
    CoreItem,
    CoreKind,
    CoreTask,
    SchemaItem,
)
from mlxchat.model.config import Architecture, GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx
from mlxchat.tokenizer.bpe import Tokenizer
from support.cases import GOLDEN, golden
from support.places import SHARED

KINDS: dict[str, CoreKind] = {
    "multiple_choice": "multiple choice",
    "schema": "schema",
    "language_modeling": "completion",
}
ITEMS = {"multiple choice": ChoiceItem, "schema": SchemaItem, "completion": CompletionItem}
ARCHITECTURES: list[Architecture] = ["classic", "modern"]


@dataclass(frozen=True)
class MadeTask:
    """A task that was written for the tests, with what nanochat makes of each example."""

    label: str
    task: CoreTask
    items: list[CoreItem]
    expected: list[dict[str, Any]]
    accuracy: float


def made_tasks(arch: Architecture) -> list[MadeTask]:
    return [_made_task(fields) for fields in golden(f"core/{arch}_made.json")["made"]]


def _made_task(fields: dict[str, Any]) -> MadeTask:
    kind = KINDS[fields["task_type"]]
    task = CoreTask(
        "made.jsonl",
        kind,
        fields["num_fewshot"],
        baseline=0,
        gpt2=(0, 0, 0, 0),
        delimiter=fields["continuation_delimiter"],
    )
    items = [ITEMS[kind].model_validate(item) for item in fields["data"]]
    return MadeTask(fields["label"], task, items, fields["examples"], fields["accuracy"])


def bundle_goldens(arch: Architecture) -> dict[str, Any]:
    """What nanochat makes of the bundle's tasks; it quotes them, and is not in the repository."""
    path = SHARED / "goldens" / "next" / f"core_{arch}_bundle.json"
    goldens: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return goldens


@cache
def core_model(arch: Architecture) -> SavedModel:
    facts = golden(f"core/{arch}_made.json")
    config = GPTConfig(arch=arch, vocab_multiple=facts["vocab_multiple"], **facts["config"])
    model = GPT(config, mx.float32)
    weights: Any = mx.load(str(GOLDEN / "core" / f"{arch}_weights.safetensors"))
    model.load_weights([(name, weight.astype(mx.float32)) for name, weight in weights.items()])
    return SavedModel(model, core_tokenizer(), conversational=False)


@cache
def core_tokenizer() -> Tokenizer:
    facts = golden("core/tokenizer.json")
    ranks = {base64.b64decode(token): rank for rank, token in enumerate(facts["ranks_b64"])}
    return Tokenizer(ranks, facts["pattern"], facts["special_tokens"])


def same_prompt(prompt: str, expected: Any) -> bool:
    """Whether a prompt is the golden one, of which a long one is known by its length and hash."""
    if isinstance(expected, str):
        return prompt == expected
    return expected["sha256"] == hashlib.sha256(prompt.encode()).hexdigest()


def same_ids(ids: Sequence[int], expected: Any) -> bool:
    """Whether ids are the golden ones, of which long ones are known by their number and hash."""
    if isinstance(expected, list):
        return list(ids) == expected
    as_json = json.dumps(list(ids), separators=(",", ":"))
    found = len(ids), hashlib.sha256(as_json.encode()).hexdigest()
    return found == (expected["tokens"], expected["sha256_of_json"])
