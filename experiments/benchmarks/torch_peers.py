"""PyTorch's optimizers as peers, where PyTorch happens to be installed: it is no dependency."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

import jax

RATE = 1e-4
PACKAGES = {"torch": "torch", "pytorch_optimizer": "pytorch-optimizer"}


def available() -> Mapping[str, Callable]:
    """Optimizers by name, as functions of a list of parameters; none without PyTorch."""
    if not _installed("torch"):
        return {}
    import torch

    found = {
        "torch: AdamW (foreach)": lambda params: torch.optim.AdamW(params, RATE, weight_decay=1e-2, foreach=True),
        "torch: AdamW (fused)": lambda params: torch.optim.AdamW(params, RATE, weight_decay=1e-2, fused=True),
    }
    if _installed("pytorch_optimizer"):
        import pytorch_optimizer

        for name in ("SPAM", "StableSPAM", "AdamP"):
            make = getattr(pytorch_optimizer, name)
            found[f"pytorch_optimizer: {name}"] = lambda params, make=make: make(params, lr=RATE, weight_decay=1e-2)
    return found


def versions() -> Mapping[str, Mapping[str, str]]:
    """Versions of what is installed, for the record."""
    found = {package: version(distribution) for package, distribution in PACKAGES.items() if _installed(package)}
    return {"torch_versions": found} if found else {}


def stepper(make: Callable, shapes: Sequence[Sequence[int]]) -> tuple[Callable[[], None], Callable[[], int]]:
    """A function that takes a step on random parameters and gradients, and one that tells the bytes of state."""
    import torch

    on_gpu = torch.cuda.is_available() and jax.default_backend() == "gpu"
    device = "cuda" if on_gpu else "cpu"
    params = [torch.nn.Parameter(torch.randn(*shape, device=device)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer = make(params)

    def step():
        optimizer.step()
        if on_gpu:
            torch.cuda.synchronize()

    def state_bytes():
        # Beside the parameters' states, which are dictionaries, there are counters.
        states = [state for state in optimizer.state.values() if isinstance(state, dict)]
        tensors = [value for state in states for value in state.values() if torch.is_tensor(value)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    return step, state_bytes


def _installed(package):
    return importlib.util.find_spec(package) is not None
