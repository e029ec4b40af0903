from pathlib import Path

import pytest
import torch
from helpers import Tied
from safetensors.torch import save_file, save_model
from torch import nn

from lightning_effnn.cli._errors import UsageError
from lightning_effnn.cli.compress import load_checkpoint
from lightning_effnn.cli.main import main
from lightning_effnn.compression import load_compressed, save_compressed
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


def mlp(seed=0, depth=2):
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(depth)))


def named(prefix, net):
    return {f"{prefix}{name}": x for name, x in net.state_dict().items()}


def holds(model, net):
    return all(torch.equal(x, net.state_dict()[name]) for name, x in model.state_dict().items())


TEACHER, STUDENT = mlp(1), mlp(2)
TWO = {
    "prefixes": ({"state_dict": named("teacher.", TEACHER) | named("student.", STUDENT)}, ["student", "teacher"]),
    "average": ({"model": STUDENT.state_dict(), "model_ema": TEACHER.state_dict()}, ["model", "model_ema"]),
    "both": (
        {"net": named("module.", STUDENT), "ema": {"module": TEACHER.state_dict(), "decay": 0.9}},
        ["net.module", "ema.module"],
    ),
    "inside": (STUDENT.state_dict() | named("teacher.", TEACHER), [".", "teacher"]),
}


@pytest.mark.parametrize(("content", "names"), TWO.values(), ids=TWO)
def test_of_two_networks_that_fit_one_has_to_be_named(content, names, tmp_path):
    path = str(tmp_path / "two.ckpt")
    torch.save(content, path)
    with pytest.raises(UsageError, match="2 networks in it fit the model: .* Say which is meant: --network") as caught:
        load_checkpoint(path, mlp())
    assert all(name in str(caught.value) for name in names)
    for name, net in zip(names, (STUDENT, TEACHER), strict=True):
        model = mlp()
        note = load_checkpoint(path, model, name)
        assert holds(model, net)
        assert "taken: " in note
        assert "4 others are not of this network" in note
    with pytest.raises(UsageError, match=f"called 'pupil'; there is: {names[0]}"):
        load_checkpoint(path, mlp(), "pupil")


def test_which_network_can_be_said_on_the_command_line(tmp_path, capsys):
    net = LeNet5()
    torch.save({"state_dict": named("teacher.", LeNet5()) | named("student.", net)}, tmp_path / "two.ckpt")
    command = ["compress", str(tmp_path / "two.ckpt"), "--model", MODEL, "-o", str(tmp_path / "x.effnn")]
    assert main(command) == 2
    assert "student, teacher" in capsys.readouterr().err
    assert main([*command, "--network", "student"]) == 0
    assert "taken: state_dict.student, 8 tensors; 8 others" in capsys.readouterr().out
    assert torch.equal(load_compressed(tmp_path / "x.effnn")["conv1.bias"], net.conv1.bias)


def test_one_network_under_two_names_is_no_question(tmp_path):
    torch.save(named("net.", STUDENT) | named("online.", STUDENT), tmp_path / "x.pt")
    model = mlp()
    load_checkpoint(str(tmp_path / "x.pt"), model)
    assert holds(model, STUDENT)


def test_a_network_that_fits_whole_goes_before_a_part_of_a_deeper_one(tmp_path):
    torch.save(named("teacher.", mlp(1, depth=5)) | named("student.", STUDENT), tmp_path / "x.pt")
    model = mlp()
    load_checkpoint(str(tmp_path / "x.pt"), model)
    assert holds(model, STUDENT)


def test_what_is_left_of_a_deeper_network_is_said(tmp_path):
    deep = mlp(1, depth=5)
    torch.save(deep.state_dict(), tmp_path / "x.pt")
    assert "left, as the model has no such names: 2.weight, 2.bias, 3.weight" in load_checkpoint(
        str(tmp_path / "x.pt"), mlp()
    )


PREFIXES = ["module.", "model.", "_orig_mod.", "model._orig_mod.module.", "net.encoder."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("suffix", ["pt", "safetensors", "effnn"])
def test_prefixes_of_any_kind_come_off(prefix, suffix, tmp_path):
    state, path = named(prefix, STUDENT), tmp_path / f"x.{suffix}"
    if prefix != "_orig_mod.":  # which is none: what stands beside it is the network's
        state["criterion.weight"] = torch.ones(3)
    {"pt": torch.save, "safetensors": save_file, "effnn": save_compressed}[suffix](state, path)
    model = mlp()
    load_checkpoint(str(path), model)
    assert holds(model, STUDENT)


def test_names_that_compiling_puts_in_between_come_off(tmp_path):
    state = STUDENT.state_dict()
    torch.save({name.replace(".", "._orig_mod."): x for name, x in state.items()}, tmp_path / "x.pt")
    model = mlp()
    load_checkpoint(str(tmp_path / "x.pt"), model)
    assert holds(model, STUDENT)


@pytest.mark.parametrize("left_out", ["embedding.weight", "head.weight"])
def test_one_name_of_a_tied_weight_is_enough(left_out, tmp_path):
    net, model = Tied(), Tied()
    save_file({f"model.{k}": x for k, x in net.state_dict().items() if k != left_out}, tmp_path / "x.safetensors")
    load_checkpoint(str(tmp_path / "x.safetensors"), model)
    assert holds(model, net)
    assert model.head.weight is model.embedding.weight


def test_tied_weights_as_save_model_writes_them(tmp_path):
    net, model = Tied(), Tied()
    save_model(net, str(tmp_path / "x.safetensors"))
    load_checkpoint(str(tmp_path / "x.safetensors"), model)
    assert holds(model, net)


W, B = torch.ones(4, 4), torch.zeros(4)
REFUSED = {
    "other shapes": ({"weight": torch.ones(4, 5), "bias": B}, r"weight \(4, 5\) in the file, \(4, 4\) in the model"),
    "missing": ({"net.weight": W, "net.other": B}, "missing in the file under 'net.': bias. not in the model: net.oth"),
    "codes": ({"weight": W.char(), "bias": B}, r"weight holds codes \(torch.int8\)"),
    "codes and scale": (
        {"weight": W.to(torch.float8_e4m3fn), "bias": B, "weight_scale_inv": torch.ones(1)},
        r"weight holds codes \(torch.float8_e4m3fn\) with weight_scale_inv beside",
    ),
    "complex": ({"weight": W.to(torch.complex64), "bias": B}, "weight is torch.complex64, which the model's"),
    "sparse": ({"weight": W.to_sparse(), "bias": B}, "weight must be a dense tensor"),
    "without values": (
        {"weight": W.to("meta"), "bias": B},
        "weight must be a dense tensor, it is torch.strided on meta",
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(("state", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_the_models_is_refused(state, said, tmp_path):
    torch.save(state, tmp_path / "x.pt")
    model = nn.Linear(4, 4)
    before = model.weight.clone()
    with pytest.raises(UsageError, match=said):
        load_checkpoint(str(tmp_path / "x.pt"), model)
    assert torch.equal(model.weight, before)


def test_tied_weights_that_differ_in_the_file_are_refused(tmp_path):
    torch.save({"embedding.weight": torch.ones(10, 4), "head.weight": torch.zeros(10, 4)}, tmp_path / "x.pt")
    with pytest.raises(UsageError, match=r"embedding.weight, head.weight are one tensor in the model and differ"):
        load_checkpoint(str(tmp_path / "x.pt"), Tied())


def test_a_shard_alone_is_told_of_its_index(tmp_path):
    path = tmp_path / "model-00001-of-00002.safetensors"
    save_file({"0.weight": torch.ones(4, 4)}, path)
    with pytest.raises(UsageError, match="missing in the file: .*one of several shards: give their .index.json"):
        load_checkpoint(str(path), mlp())


@pytest.mark.parametrize("content", [b"", b"hello" * 100, b"PK\3\4" + bytes(99)])
def test_a_file_of_no_weights_is_one_message(content, tmp_path, capsys):
    (tmp_path / "x.pt").write_bytes(content)
    assert main(["compress", str(tmp_path / "x.pt"), "--model", MODEL, "-o", str(tmp_path / "x.effnn")]) == 2
    error = capsys.readouterr().err
    assert "cannot be read as weights" in error
    assert error.count("\n") == 1


def test_a_device_takes_the_file(weights, tmp_path):
    _, path = weights
    link = tmp_path / "link.effnn"
    link.symlink_to("/dev/null")
    assert main(["compress", str(path), "--model", MODEL, "-o", str(link)]) == 0
    assert link.is_symlink()
    assert link.is_char_device()


def test_a_folder_as_output_is_one_message(weights, tmp_path, capsys):
    _, path = weights
    assert main(["compress", str(path), "--model", MODEL, "-o", str(tmp_path), "--force"]) == 2
    assert "is a folder: give the name of a file" in capsys.readouterr().err


def resident(name):
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith(name))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
def test_compressing_takes_little_more_memory_than_the_network_and_its_file(weights, tmp_path, monkeypatch):
    """One weight is the whole network: the hardest case for working through it layer by layer."""
    _, path = weights
    assert main(["compress", str(path), "--model", MODEL, "-o", "/dev/null"]) == 0  # what is imported once is there
    torch.manual_seed(0)
    net = nn.Embedding(8192, 1024)
    save_file(net.state_dict(), tmp_path / "large.safetensors")
    monkeypatch.setattr("lightning_effnn.cli.compress.load_model", lambda _: net)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident("VmRSS")
    assert main(["compress", str(tmp_path / "large.safetensors"), "--model", "a:b", "-o", str(tmp_path / "x")]) == 0
    assert resident("VmHWM") - before < 4.5 * net.weight.nbytes  # 3.3 times; 8.9 were it worked on at once
