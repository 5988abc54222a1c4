"""How much of a model's writing is shown: a little on the way, more after the last step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.models import network

from mlxchat.config.pretrain import PretrainConfig
from mlxchat.home import Home
from mlxchat.train.pretrain import Pretraining
from mlxchat.train.samples import SAMPLES, SAMPLES_ON_THE_WAY


@pytest.mark.parametrize(
    ("step", "expected"), [(2, SAMPLES_ON_THE_WAY), (9, SAMPLES_ON_THE_WAY), (10, SAMPLES)]
)
def test_the_last_step_shows_more_samples_than_those_before(
    step: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = network(64)
    prompts = [(str(number), [number]) for number in range(1, SAMPLES + 2)]
    stage = Pretraining(PretrainConfig(), Home(tmp_path), print)
    monkeypatch.setattr(stage, "prompts", lambda *_: prompts)
    plan = SimpleNamespace(num_iterations=10)
    state = SimpleNamespace(plan=plan, model=saved.model, tokenizer=saved.tokenizer)
    documents = SimpleNamespace(conversational=False)
    events = list(stage.sampled(cast(Any, documents), cast(Any, state), step))
    assert [event.prompt for event in events] == [words for words, _ in prompts[:expected]]
