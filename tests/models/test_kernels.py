"""Every kernel against plain torch, values and gradients, wherever it can run."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cromic_ds.errors import UserError
from cromic_ds.models.common.kernels import IGNORE, TABLES, Kernels, install, select

DEVICES = ["cpu", "cuda"]
CASES = [(what, name, device) for what, table in TABLES.items() for name in table for device in DEVICES]


def function(what: str, name: str, device: str):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    choice = TABLES[what][name]
    if not choice.works(torch.device(device)):
        pytest.skip(f"{name} cannot run on {device} with what is installed here")
    return choice.function


def cases(what: str):
    chosen = [(name, device) for kind, name, device in CASES if kind == what]
    return pytest.mark.parametrize(("name", "device"), chosen)


def value_and_gradients(run, inputs: list[Tensor]) -> list[Tensor]:
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = run(*inputs)
    towards = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(out.device)
    return [out.detach(), *torch.autograd.grad((out.float() * towards).sum(), inputs)]


def assert_parity(kernel, plain, inputs: list[Tensor], tolerance: float = 1e-4) -> None:
    for ours, expected in zip(value_and_gradients(kernel, inputs), value_and_gradients(plain, inputs)):
        torch.testing.assert_close(ours.float(), expected.float(), rtol=tolerance, atol=tolerance)


def draw(device: str, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


@cases("layer_norm")
def test_layer_norm(name, device):
    kernel = function("layer_norm", name, device)
    inputs = draw(device, (7, 5, 64), (64,), (64,))
    assert_parity(
        lambda x, w, b: kernel(3 * x + 1, w, b, 1e-5),
        lambda x, w, b: F.layer_norm(3 * x + 1, (64,), w, b, 1e-5),
        inputs,
    )


@cases("linear_cross_entropy")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [40, 4100])  # 4,100: more than one piece of torch_chunked
def test_linear_cross_entropy(name, device, smoothing, rows):
    kernel = function("linear_cross_entropy", name, device)
    target = torch.randint(0, 50, (rows,), generator=torch.Generator().manual_seed(1)).to(device)
    target[::7] = IGNORE

    def plain(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        kept = target != IGNORE
        log_p = F.linear(hidden, weight, bias)[kept].log_softmax(-1)
        nll = -log_p.gather(1, target[kept][:, None]).sum()
        return (1 - smoothing) * nll - smoothing * log_p.mean(1).sum()

    inputs = draw(device, (rows, 32), (50, 32), (50,))
    assert_parity(lambda h, w, b: kernel(h, w, b, target, smoothing), plain, inputs, tolerance=1e-3)


@cases("attention")
@pytest.mark.parametrize("kind", ["free", "causal", "mask"])
def test_attention(name, device, kind):
    kernel = function("attention", name, device)
    inputs = draw(device, (2, 3, 12, 16), (2, 3, 12, 16), (2, 3, 12, 16))
    readable = torch.arange(12, device=device) < torch.tensor([[7], [12]], device=device)
    if kind == "causal":
        mask, options = torch.ones(12, 12, dtype=torch.bool, device=device).tril(), {"is_causal": True}
    else:
        mask = readable[:, None, None] if kind == "mask" else torch.ones(1, 1, 1, 12, dtype=torch.bool, device=device)
        options = {"attn_mask": mask} if kind == "mask" else {}

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) / 4
        return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v

    assert_parity(lambda q, k, v: kernel(q, k, v, **options), plain, inputs)


@pytest.mark.parametrize("name", list(TABLES["linear_cross_entropy"]))
@pytest.mark.parametrize("device", DEVICES)
def test_output_layer_under_autocast(name, device):
    """In bf16 the loss is still summed in fp32: 600 tokens of about ln 50 nats, to 1%."""
    kernel = function("linear_cross_entropy", name, device)
    hidden, weight, bias = draw(device, (600, 32), (50, 32), (50,))
    target = torch.arange(600, device=device) % 50
    with torch.autocast(device, torch.bfloat16):
        rough = kernel(hidden, weight, bias, target, 0.0)
    assert rough.dtype is torch.float32
    exact = F.cross_entropy(F.linear(hidden, weight, bias), target, reduction="sum")
    torch.testing.assert_close(rough, exact, rtol=1e-2, atol=0)


def test_selection():
    kernels = select(torch.device("cpu"), debug={"linear_cross_entropy": "torch_chunked"})
    assert kernels.names == {
        "layer_norm": "torch",
        "linear_cross_entropy": "torch_chunked",
        "attention": "sdpa",
        "memory_format": "channels_last",
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_norm": "ligre"}, "kernels_debug: unknown layer_norm 'ligre'.*did you mean 'liger'"),
        ({"layer_norm": "apex"}, "'apex' cannot run on cpu.*usable: torch"),
        ({"attention": "efficient"}, "'efficient' cannot run on cpu"),
        ({"atention": "math"}, "kernels_debug: unknown operation 'atention'.*did you mean 'attention'"),
        ({"memory_format": "nhwc"}, "kernels_debug: unknown memory_format 'nhwc'"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(UserError, match=message):
        select(torch.device("cpu"), debug=settings)


def test_installed_kernels_are_the_ones_that_run(smallest, make_batch):
    model, batch = smallest(), make_batch()
    expected = model(batch)
    used = set()

    def counted(what: str, kernel):
        def run(*args, **kwargs):
            used.add(what)
            return kernel(*args, **kwargs)

        return run

    plain = select(torch.device("cpu"))
    functions = {what: counted(what, getattr(plain, what)) for what in TABLES}
    install(model, Kernels(**functions, memory_format=plain.memory_format, names=plain.names))
    assert model(batch) == expected
    assert used == set(TABLES)
