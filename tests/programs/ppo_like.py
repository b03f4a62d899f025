"""Several passes of minibatch steps over each collected batch of experience, in the manner of PPO."""

import numpy as np
import torch
from torch import nn
from torch.distributions import Normal
from weights_digest import print_final


class Pendulum:
    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.angle, self.speed = 0.0, 0.0

    def reset(self):
        self.angle, self.speed = self.rng.uniform(-1, 1), 0.0
        return np.array([np.cos(self.angle), np.sin(self.angle), self.speed], dtype=np.float32)

    def step(self, torque):
        self.speed += 0.1 * (np.sin(self.angle) + torque) + 0.01 * self.rng.standard_normal()
        self.angle += 0.1 * self.speed
        return np.array([np.cos(self.angle), np.sin(self.angle), self.speed], dtype=np.float32), np.cos(self.angle)


def collect(env, actor, steps):
    observations, actions, log_probs, rewards = [], [], [], []
    observation = env.reset()
    for _ in range(steps):
        with torch.no_grad():
            policy = Normal(actor(torch.from_numpy(observation)), 0.5)
            action = policy.sample()
        observations.append(torch.from_numpy(observation))
        actions.append(action)
        log_probs.append(policy.log_prob(action))
        observation, reward = env.step(action.item())
        rewards.append(reward)
    returns = torch.tensor(rewards, dtype=torch.float32).flip(0).cumsum(0).flip(0)
    return torch.stack(observations), torch.stack(actions), torch.stack(log_probs), returns


def train():
    torch.manual_seed(20)
    env = Pendulum(20)
    actor = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
    critic = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=5e-3)
    for iteration in range(3):
        observations, actions, old_log_probs, returns = collect(env, actor, 24)
        for _epoch in range(3):
            for index in torch.randperm(24).split(8):
                value = critic(observations[index]).squeeze(1)
                advantage = returns[index] - value.detach()
                log_prob = Normal(actor(observations[index]), 0.5).log_prob(actions[index])
                ratio = (log_prob - old_log_probs[index]).exp().squeeze(1)
                surrogate = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
                loss = -surrogate + 0.5 * (returns[index] - value).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        print(f"iteration {iteration} return {returns[0].item():.6f} loss {loss.item():.6f}")
    print_final(actor, critic)


if __name__ == "__main__":
    train()
