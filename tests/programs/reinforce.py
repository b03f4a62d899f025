"""REINFORCE: the data come from an environment with state and a random generator of its own."""

import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical
from weights_digest import print_final


class Walk:
    """A walker on a line; wind blows at random."""

    def __init__(self, seed):
        self.random = np.random.RandomState(seed)
        self.position = 0.0
        self.episodes = 0

    def reset(self):
        self.position = self.random.uniform(-1, 1)
        self.episodes += 1
        return self.observe()

    def observe(self):
        return torch.tensor([self.position, self.position**2, 1.0], dtype=torch.float32)

    def step(self, action):
        self.position += (0.3 if action == 1 else -0.3) + self.random.normal(0, 0.05)
        return self.observe(), -abs(self.position), abs(self.position) > 2


def train():
    torch.manual_seed(19)
    env = Walk(seed=19)
    policy = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(policy.parameters(), lr=2e-2)
    running_reward = -1.0
    for episode in range(16):
        state, log_probs, rewards = env.reset(), [], []
        for _ in range(10):
            distribution = Categorical(logits=policy(state))
            action = distribution.sample()
            log_probs.append(distribution.log_prob(action))
            state, reward, done = env.step(action.item())
            rewards.append(reward)
            if done:
                break
        running_reward = 0.9 * running_reward + 0.1 * sum(rewards)
        loss = -torch.stack(log_probs).sum() * (sum(rewards) - running_reward)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if episode % 5 == 0:
            print(f"episode {env.episodes} reward {running_reward:.6f}")
    print_final(policy)


if __name__ == "__main__":
    train()
