import pytest
import torch
from safetensors.torch import save_file

from lightning_effnn.cli.main import main
from lightning_effnn.compression import load_compressed
from lightning_effnn.modules import LeNet5, SmallCNN

MODEL = "lightning_effnn.modules:LeNet5"


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    net = LeNet5()
    path = tmp_path / "net.safetensors"
    save_file(net.state_dict(), path)
    return net, path


def test_a_checkpoint_becomes_a_small_file_that_loads(weights, tmp_path, capsys):
    _, path = weights
    out = tmp_path / "net.effnn"
    assert main(["compress", str(path), "--model", MODEL, "-o", str(out), "--sparsity", "0.9", "--other", "fp16"]) == 0
    again = LeNet5()
    load_compressed(out, again)
    assert (again.fc1.weight == 0).float().mean() > 0.8
    assert len(again.fc1.weight.unique()) <= 19
    assert "times smaller" in capsys.readouterr().out
    assert out.stat().st_size * 20 < path.stat().st_size


def test_a_lightning_checkpoint_is_taken_under_its_prefix(weights, tmp_path):
    net, _ = weights
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {f"model.net.{k}": v for k, v in net.state_dict().items()}, "epoch": 3}, path)
    assert main(["compress", str(path), "--model", MODEL, "-o", str(tmp_path / "a.effnn")]) == 0


@pytest.mark.parametrize("prefix", ["", "net."])
def test_batch_norm_counters_may_be_absent(tmp_path, prefix):
    state = {f"{prefix}{k}": v for k, v in SmallCNN().state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "net.safetensors")
    model = "lightning_effnn.modules:SmallCNN"
    assert main(["compress", str(tmp_path / "net.safetensors"), "--model", model, "-o", str(tmp_path / "a.effnn")]) == 0
    loaded = load_compressed(tmp_path / "a.effnn")
    assert torch.equal(loaded["block1.1.weight"], state[f"{prefix}block1.1.weight"])


def test_an_existing_file_is_kept_unless_forced(weights, tmp_path, capsys):
    _, path = weights
    out = tmp_path / "net.effnn"
    out.write_text("mine")
    assert main(["compress", str(path), "--model", MODEL, "-o", str(out)]) == 2
    assert out.read_text() == "mine"
    assert "--force" in capsys.readouterr().err
    assert main(["compress", str(path), "--model", MODEL, "-o", str(out), "--force"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sparsity", "1.0"], "sparsity=1.0"),
        (["--bits", "2"], "bits"),
        (["--model", "lightning_effnn.modules:SmallCNN"], "does not fit the model"),
        (["--model", "lightning_effnn.modules:Nothing"], "Nothing"),
    ],
)
def test_wrong_arguments_are_refused_with_one_message(weights, tmp_path, capsys, arguments, words):
    _, path = weights
    command = ["compress", str(path), "--model", MODEL, "-o", str(tmp_path / "x.effnn"), *arguments]
    assert main(command) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "x.effnn").exists()


def test_a_pickle_is_never_run(tmp_path, capsys):
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(Evil()))
    assert main(["compress", str(path), "--model", MODEL, "-o", str(tmp_path / "x.effnn")]) == 2
    assert not (tmp_path / "owned").exists()
    assert "cannot be read" in capsys.readouterr().err


def test_a_missing_checkpoint_is_named(tmp_path, capsys):
    assert main(["compress", "nowhere.pt", "--model", MODEL, "-o", str(tmp_path / "x.effnn")]) == 2
    assert "nowhere.pt" in capsys.readouterr().err
