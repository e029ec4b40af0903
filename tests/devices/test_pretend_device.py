"""The pretended device is as strict as an accelerator, and computes what the CPU computes."""

import copy
import threading

import pytest
import torch
from torch import nn

from lightning_effnn.formats import FixedPoint

MIXED = {
    "sum": lambda x: x + torch.ones(3),
    "into the CPU": lambda x: torch.ones(3).add_(x),
    "a number into the CPU": lambda x: torch.ones(()).add_(x.sum()),
    "join": lambda x: torch.cat([x, torch.ones(3)]),
    "stack of numbers": lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
    "selection": lambda x: torch.where(x > 0, x, torch.ones(3)),
    "indices": lambda x: torch.ones(3)[x.long()],
    "lookup": lambda x: x.index_select(0, torch.arange(2)),
    "layer": lambda x: nn.Linear(3, 2)(x),
    "generator": lambda x: torch.rand(3, device=x.device, generator=torch.Generator().manual_seed(0)),
    "a part written": lambda x: x[:2].copy_(torch.ones(2)).add_(torch.ones(2)),
}


@pytest.mark.parametrize("use", MIXED.values(), ids=MIXED)
def test_what_mixes_devices_is_refused(use, device):
    with pytest.raises(RuntimeError, match="Expected"):
        use(torch.ones(3, device=device))


def test_a_table_of_the_cpu_in_a_mechanism_is_found(device, monkeypatch):
    monkeypatch.setattr(FixedPoint, "_round", lambda self, x: x * torch.ones(3))
    with pytest.raises(RuntimeError, match="two devices"):
        FixedPoint(8).quantize(torch.ones(3, device=device))


def test_numpy_is_refused(device):
    with pytest.raises(TypeError, match="numpy"):
        torch.ones(3, device=device).numpy()


def test_numbers_of_the_cpu_and_indices_go_along_as_on_an_accelerator(device):
    x = torch.arange(3.0, device=device)
    assert (x * torch.tensor(2.0)).tolist() == [0, 2, 4]
    assert x[torch.tensor([2, 0])].tolist() == [2, 0]
    assert float(x.sum()) == 3.0


@pytest.mark.parametrize("make", [
    lambda **place: torch.zeros(2, **place), lambda **place: torch.arange(2.0, **place),
    lambda **place: torch.rand(2, **place), lambda **place: torch.tensor([1, 2], **place),
    lambda **place: torch.as_tensor([1, 2], **place), lambda **place: torch.ones(2).to(**place),
    lambda **place: torch.zeros(2, **place).new_tensor([1, 2]),
])  # fmt: skip
def test_tensors_lie_where_they_are_asked_for(make, device):
    made = make(device=device)
    assert made.device == device
    assert made.shape == (2,)
    assert made.cpu().device.type == "cpu"


def test_random_numbers_of_its_own(device):
    generator = torch.Generator(device=device).manual_seed(3)
    drawn = torch.rand(4, device=device, generator=generator)
    assert torch.equal(drawn.cpu(), torch.rand(4, generator=torch.Generator().manual_seed(3)))


def test_trains_as_the_cpu_does_and_goes_back_in_another_thread(device):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    other = copy.deepcopy(net).to(device)
    x, threads = torch.rand(3, 1, 6, 6), []
    for model, batch in ((net, x), (other, x.to(device))):
        optimizer = torch.optim.Adam(model.parameters())
        model[0].weight.register_hook(lambda _: threads.append(threading.get_ident()))
        for _ in range(2):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
    for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
        assert b.device == device
        torch.testing.assert_close(a, b.cpu())
    assert len(set(threads)) == 2


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
@torch.no_grad()
def test_recurrent_layers_run(kind, device):
    layer, x = kind(3, 4), torch.rand(5, 2, 3)
    expected = layer(x)[0]
    torch.testing.assert_close(layer.to(device)(x.to(device))[0].cpu(), expected)


def test_values_and_views_are_shared_as_they_should_be(device):
    x = torch.zeros(2, 2, device=device)
    x[0].add_(1)
    assert x.tolist() == [[1, 1], [0, 0]]
    weight = nn.Parameter(torch.zeros(2, device=device))
    weight.data = torch.ones(3, device=device)
    assert weight.tolist() == [1, 1, 1]
    assert weight.detach().sum() == 3
