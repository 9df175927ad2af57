"""The same decoder in PyTorch, as a peer, where PyTorch happens to be installed: it is no dependency."""

import importlib.util
from collections.abc import Callable, Sequence

import jax
import numpy as np

from experiments.harness.llama import LlamaConfig


def available() -> bool:
    """Whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def stepper(config: LlamaConfig, batches: Sequence[np.ndarray], steps: int) -> Callable[[], None]:
    """A function that takes training steps with ``torch.optim.AdamW``.

    Args:
        config: sizes and precision; of the options none.
        batches: rows of tokens, used in turn.
        steps: how many at a call.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    head_size = config.width // config.heads
    angles = torch.arange(config.context)[:, None] * 1e4 ** (-torch.arange(0, head_size, 2) / head_size)
    cosine, sine = torch.cos(angles).to(device), torch.sin(angles).to(device)

    def rotate(x):
        first, second = x.chunk(2, -1)
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1).to(x.dtype)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.mlp_norm = nn.RMSNorm(config.width), nn.RMSNorm(config.width)
            self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
            self.out = nn.Linear(config.width, config.width, bias=False)
            self.gate = nn.Linear(config.width, config.hidden, bias=False)
            self.up = nn.Linear(config.width, config.hidden, bias=False)
            self.down = nn.Linear(config.hidden, config.width, bias=False)

        def forward(self, x):
            qkv = self.qkv(self.norm(x)).view(*x.shape[:2], 3, config.heads, head_size)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
            h = self.mlp_norm(x)
            return x + self.down(functional.silu(self.gate(h)) * self.up(h))

    model = nn.Sequential(
        nn.Embedding(config.vocab_size, config.width),
        *(Block() for _ in range(config.layers)),
        nn.RMSNorm(config.width),
        nn.Linear(config.width, config.vocab_size, bias=False),
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    rows = [torch.as_tensor(batch, dtype=torch.long, device=device) for batch in batches]
    half = config.dtype != "float32"

    def advance():
        for number in range(steps):
            tokens = rows[number % len(rows)]
            with torch.autocast(device, torch.bfloat16, enabled=half):
                logits = model(tokens[:, :-1])
            loss = functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return advance
