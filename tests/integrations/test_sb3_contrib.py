"""RecurrentPPO of sb3-contrib: training, a policy that gives its resets to one call, files."""

import numpy as np
import pytest
import torch

import fused_rnn
from tests.support.tolerances import assert_equal_in_float64
from tests.support.twins import assert_same_weights

sb3 = pytest.importorskip("sb3_contrib", reason="sb3-contrib is not installed")
gym = pytest.importorskip("gymnasium", reason="gymnasium is not installed")
policies = pytest.importorskip("sb3_contrib.common.recurrent.policies")


class Recall(gym.Env):
    """Shows a bit, then three steps of nothing; the last action should be that bit."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.step_count, self.bit = 0, int(self.np_random.integers(2))
        return np.array([2 * self.bit - 1, 1], np.float32), {}

    def step(self, action):
        self.step_count += 1
        ends = self.step_count == 4
        reward = float(ends and action == self.bit)
        return np.zeros(2, np.float32), reward, ends, False, {}


class OneCall(policies.RecurrentActorCriticPolicy):
    """Gives the episodes' starts to one call, where sb3-contrib loops over the steps."""

    @staticmethod
    def _process_sequence(features, lstm_states, episode_starts, lstm):
        rows = lstm_states[0].shape[1]
        x = features.reshape((rows, -1, lstm.input_size)).swapaxes(0, 1)
        starts = episode_starts.reshape((rows, -1)).swapaxes(0, 1) > 0
        zeros = tuple(torch.zeros_like(state).expand(len(x), *state.shape) for state in lstm_states)
        output, states = lstm(x, lstm_states, reset=starts, reset_hx=zeros)
        return output.transpose(0, 1).flatten(0, 1), states


def _agent(policy="MlpLstmPolicy", **options):
    return sb3.RecurrentPPO(
        policy,
        Recall(),
        n_steps=16,
        batch_size=16,
        n_epochs=2,
        seed=0,
        device="cpu",
        policy_kwargs={"lstm_hidden_size": 8, "net_arch": [8]},
        **options,
    )


@pytest.mark.parametrize("policy", ["MlpLstmPolicy", OneCall], ids=["as it is", "one call"])
def test_training(policy):
    theirs = _agent().learn(32)
    ours = _agent(policy)  # which seeds anew
    fused_rnn.convert(ours.policy)
    assert isinstance(ours.policy.lstm_actor, fused_rnn.LSTM)
    ours.learn(32)
    assert_same_weights(ours.policy, theirs.policy, atol=2e-5)


def test_a_sequence_with_resets():
    layer = torch.nn.LSTM(3, 4, dtype=torch.float64)
    ours = fused_rnn.convert(torch.nn.Sequential(layer))[0]
    theirs = torch.nn.LSTM(3, 4, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    features = torch.randn(2 * 6, 3, dtype=torch.float64)
    states = tuple(torch.randn(1, 2, 4, dtype=torch.float64) for _ in range(2))
    starts = torch.zeros(2 * 6, dtype=torch.float64)
    starts[[0, 3, 10]] = 1
    results = []
    for lstm, process in (
        (ours, OneCall._process_sequence),
        (theirs, policies.RecurrentActorCriticPolicy._process_sequence),
    ):
        output, finals = process(features, states, starts, lstm)
        loss = output.square().sum() + sum(final.sin().sum() for final in finals)
        found = torch.autograd.grad(loss, list(lstm.parameters()))
        results.append({str(i): t for i, t in enumerate((output, *finals, *found))})
    assert_equal_in_float64(*results)


def test_files(tmp_path):
    """A file has the weights; what it is loaded into is converted again."""
    agent = _agent()
    fused_rnn.convert(agent.policy)
    agent.learn(16)
    agent.save(tmp_path / "agent")
    again = sb3.RecurrentPPO.load(tmp_path / "agent", device="cpu")
    assert isinstance(again.policy.lstm_actor, torch.nn.LSTM)
    fused_rnn.convert(again.policy)
    assert_same_weights(again.policy, agent.policy, atol=0)
    seen = np.array([1, 1], np.float32)
    for a, b in zip(
        agent.predict(seen, deterministic=True)[1],
        again.predict(seen, deterministic=True)[1],
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
