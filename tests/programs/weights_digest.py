"""Prints one line by which two runs of a program can be told apart: the SHA-256 of all weights."""

import hashlib

import torch


def print_final(*models):
    """Print `final <sha256>` over names and bytes of the state_dicts of `models`."""
    digest = hashlib.sha256()
    for model in models:
        for name, value in model.state_dict().items():
            if isinstance(value, torch.Tensor):
                digest.update(name.encode())
                digest.update(value.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    print("final", digest.hexdigest(), flush=True)
