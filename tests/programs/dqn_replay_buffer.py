"""DQN: a deque as replay buffer, random.sample, epsilon decay, a target network copied every few steps."""

import random
from collections import deque

import numpy as np
import torch
from torch import nn
from weights_digest import print_final


class Corridor:
    def __init__(self):
        self.position = 3

    def reset(self):
        self.position = 3
        return self.encode()

    def encode(self):
        state = np.zeros(7, dtype=np.float32)
        state[self.position] = 1
        return state

    def step(self, action):
        slip = np.random.rand() < 0.1
        self.position += 1 if (action == 1) != slip else -1
        done = self.position in (0, 6)
        return self.encode(), float(self.position == 6), done


def main():
    random.seed(49)
    np.random.seed(49)
    torch.manual_seed(49)
    env, memory, epsilon = Corridor(), deque(maxlen=40), 1.0
    policy, target = nn.Linear(7, 2), nn.Linear(7, 2)
    target.load_state_dict(policy.state_dict())
    optimizer = torch.optim.Adam(policy.parameters(), lr=5e-2)
    state, updates = env.reset(), 0
    for _frame in range(32):
        if random.random() < epsilon:
            action = random.randrange(2)
        else:
            with torch.no_grad():
                action = policy(torch.from_numpy(state)).argmax().item()
        following, reward, done = env.step(action)
        memory.append((state, action, reward, following, done))
        state = env.reset() if done else following
        if len(memory) < 8:
            continue
        states, actions, rewards, followings, dones = zip(*random.sample(memory, 8))
        values = policy(torch.from_numpy(np.stack(states))).gather(1, torch.tensor(actions).unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            best = target(torch.from_numpy(np.stack(followings))).max(1).values
        expected = torch.tensor(rewards) + 0.9 * best * (1 - torch.tensor(dones, dtype=torch.float32))
        loss = nn.functional.smooth_l1_loss(values, expected)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        epsilon = max(0.05, epsilon * 0.93)
        updates += 1
        if updates % 5 == 0:
            target.load_state_dict(policy.state_dict())
    print(f"epsilon {epsilon:.6f} memory {len(memory)}")
    print_final(policy, target)


if __name__ == "__main__":
    main()
