"""What is learnt from rewarded answers, compared with what nanochat's own chat_rl computed."""

import numpy as np
import pytest
from support.cases import golden, relative
from support.rl_goldens import RlCase

from mlxchat.config.rl import RlConfig
from mlxchat.optim.gradients import compile_gradients
from mlxchat.optim.optimizer import MuonAdamW, Rates
from mlxchat.plan.memory import BatchPlan
from mlxchat.runtime import mx
from mlxchat.train.policy_gradient import advantages, all_equal, row_weights
from mlxchat.train.rewards import rewards_of
from mlxchat.train.rl_plan import RL_MOMENTUM, rl_rates
from mlxchat.train.step import StepParts, compile_step


@pytest.fixture(params=["classic", "modern"])
def case(request: pytest.FixtureRequest) -> RlCase:
    return RlCase(request.param)


def test_rows_targets_and_advantages_are_nanochats(case: RlCase) -> None:
    for example in case.examples:
        assert example.rows.ids.tolist() == example.facts["inputs"]
        assert example.rows.targets.tolist() == example.facts["targets"]
        found = advantages(example.rewards)[0]
        assert found.tolist() == np.array(example.facts["advantages"], np.float32).tolist()


def test_losses_gradients_and_weights_after_two_updates_are_nanochats(case: RlCase) -> None:
    facts, model = case.facts, case.model()
    rates = rl_rates(RlConfig(), case.config)
    passes = len(facts["steps"][0]["losses_of_passes"])

    def at(step: int) -> Rates:
        multiplier = 1 - step / facts["num_steps"]
        learning = {group: mx.array(rate * multiplier) for group, rate in rates.items()}
        return Rates(learning, mx.array(RL_MOMENTUM), mx.array(0.0))

    gradients: dict[str, mx.array] = {}
    accumulate = compile_gradients(model)
    for batch, _ in zip(case.batches(), range(passes), strict=False):
        arrays = (mx.array(array) for array in (batch.ids, batch.targets, batch.weights))
        ids, targets, weights = arrays
        one = mx.array(1)
        _, gradients = accumulate(
            model.named_parameters(), ids, targets, one, gradients, None, weights
        )
    for name, expected in case.load("grads").items():
        assert relative(gradients[name], expected) < 1e-4, name

    plan = BatchPlan(device_batch_size=facts["device_batch_size"], accumulation=passes)
    parts = StepParts(model, MuonAdamW(model), case.batches(), at, plan, grad_clip=0.0)
    launch = compile_step(parts)
    for number, step in enumerate(facts["steps"], 1):
        shares = np.array(launch(number).metrics)[2:]
        np.testing.assert_allclose(shares, step["losses_of_passes"], rtol=1e-6, atol=1e-6)
    parameters = model.named_parameters()
    for name, expected in case.load("weights_after").items():
        assert relative(parameters[name], expected) < 1e-3, name


def test_advantages_of_equal_rewards_are_zero_whatever_rounding_says() -> None:
    rewards = np.array([[0.1] * 3, [0.0, 1.0, 1.0]], np.float32)
    assert all_equal(rewards).tolist() == [True, False]
    for kind in ("mean", "std"):
        found = advantages(rewards, kind)
        assert not found[0].any()
        assert found[1].tolist() == pytest.approx((found[1][1] * np.array([-2, 1, 1])).tolist())


def test_std_divides_by_the_deviation_of_the_questions_rewards() -> None:
    rewards = np.array([[0, 0, 0, 1], [0, 0, 1, 1]], np.float32)
    found = advantages(rewards, "std")
    expected = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_weight_of_an_answer_is_shared_among_the_tokens_of_its_pass() -> None:
    drawn = np.array([[2, 3, 0, 0]])
    found = row_weights(np.array([[1, -1, 2, -2]], np.float32), drawn, 2, questions=3)
    np.testing.assert_allclose(found * 3 * 2, [1 / 5, -1 / 5, 2, -2], rtol=1e-6)


def test_rewards_of_gsm8k_are_nanochats() -> None:
    judged = golden("rl/modern.json")["gsm8k_rewards"]
    assert len(judged) > 10
    reward = rewards_of(None, "number")
    assert [reward.score("", text, "18") for text, _ in judged] == [given for _, given in judged]
