import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_effnn.data import CIFAR10DataModule
from lightning_effnn.modules import LeNet5, Normalized, ResNetCIFAR, SmallCNN


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_resnet_has_the_papers_number_of_parameters(depth, millions):
    assert count(ResNetCIFAR(depth)) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize("depth", [2, 18, 0, -4])
def test_resnet_of_another_depth_is_refused(depth):
    with pytest.raises(ValueError, match="6n"):
        ResNetCIFAR(depth)


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (SmallCNN(3, 7, 4), (2, 3, 32, 32)),
        (SmallCNN(1, 7, 4), (2, 1, 8, 8)),
        (LeNet5(7), (2, 1, 28, 28)),
        (ResNetCIFAR(20, 7), (2, 3, 32, 32)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_scores_have_one_column_a_class(net, shape):
    assert net(torch.zeros(shape)).shape == (2, 7)


def top1(net, images, labels):
    net.eval()
    with torch.inference_mode():
        return (net(images).argmax(1) == labels).float().mean().item()


# Counted over all 10,000 test images: 81.03 % and 83.20 %; three deviations of a share of 1,000 are 3.7 %.
@pytest.mark.parametrize(("depth", "expected"), [(20, 0.8103), (56, 0.8320)])
def test_published_resnet_weights_load_and_classify(data_folder, depth, expected):
    net = ResNetCIFAR(depth)
    net.load_state_dict(load_file(data_folder / f"cifar10_resnet{depth}.safetensors"), strict=True)
    data = CIFAR10DataModule(data_folder, batch_size=1000, limit=1000)
    data.setup("test")
    assert top1(net, *next(iter(data.test_dataloader()))) == pytest.approx(expected, abs=0.037)


def test_published_lenet_weights_load_and_classify(data_folder):
    net = LeNet5()
    with np.load(data_folder / "lenet5_mnist_pruned.npz") as file:
        net.load_state_dict({name: torch.from_numpy(value) for name, value in file.items()}, strict=True)
    with np.load(data_folder / "mnist.npz") as file:
        images = torch.from_numpy(file["x_test"][:2000]).unsqueeze(1) / 127.5 - 1
        labels = torch.from_numpy(file["y_test"][:2000])
    assert top1(net, images, labels) == pytest.approx(0.9927, abs=0.006)


def test_weights_of_a_file_are_loaded_by_path_or_by_name_in_the_data_folder(tmp_path, monkeypatch):
    torch.manual_seed(0)
    saved = ResNetCIFAR().state_dict()
    save_file(saved, tmp_path / "net.safetensors")
    monkeypatch.setenv("EFFNN_DATA", str(tmp_path))
    for weights in (tmp_path / "net.safetensors", "net.safetensors"):
        loaded = ResNetCIFAR(weights=weights).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in saved.items())


def test_batch_norm_counters_may_be_absent(tmp_path):
    saved = {k: v for k, v in ResNetCIFAR().state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(saved, tmp_path / "net.safetensors")
    loaded = ResNetCIFAR(weights=tmp_path / "net.safetensors")
    assert torch.equal(loaded.conv1.weight, saved["conv1.weight"])
    assert loaded.bn1.num_batches_tracked == 0


def test_weights_that_do_not_fit_are_named(tmp_path):
    saved = ResNetCIFAR(num_classes=7).state_dict()
    saved["head.weight"] = saved.pop("conv1.weight")
    save_file(saved, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="do not fit ResNetCIFAR") as error:
        ResNetCIFAR(weights=tmp_path / "net.safetensors")
    message = str(error.value)
    assert "missing in the file: conv1.weight" in message
    assert "not in the network: head.weight" in message
    assert "linear.weight (7, 64) in the file, (10, 64) in the network" in message


def test_a_long_list_of_names_is_cut(tmp_path):
    save_file(ResNetCIFAR(depth=32).state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"not in the network: layer1\.3\..* and \d+ more$"):
        ResNetCIFAR(depth=20, weights=tmp_path / "net.safetensors")


def test_a_file_that_is_no_safetensors_file_is_named(tmp_path):
    torch.save(ResNetCIFAR().state_dict(), tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"net\.pt is not a safetensors file"):
        ResNetCIFAR(weights=tmp_path / "net.pt")


def test_a_missing_file_of_weights_names_both_places(tmp_path, monkeypatch):
    monkeypatch.delenv("EFFNN_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"weights='nowhere\.safetensors'.*EFFNN_DATA"):
        ResNetCIFAR(weights="nowhere.safetensors")


def test_a_network_may_normalise_by_itself():
    net = ResNetCIFAR().eval()
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    wrapped = Normalized(net, mean, std)
    images = torch.rand(2, 3, 32, 32)
    by_hand = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    assert torch.allclose(wrapped(images), net(by_hand), atol=1e-5)
    assert set(wrapped.state_dict()) == {f"net.{key}" for key in net.state_dict()}
    with pytest.raises(ValueError, match="deviations above 0"):
        Normalized(net, mean, (0.5, 1.0, 0.0))
    with pytest.raises(ValueError, match="one of each a channel"):
        Normalized(net, mean, std[:2])
