import pickle

import lightning as L
import pytest
import torch

from lightning_effnn.data import SST2DataModule
from lightning_effnn.data.sst2 import read_sentences

TRAIN = "A fine film\t1\na dull film\t0\na film of wit and wit\t1\nno film at all\t0\n"
DEV = "a splendid film\t1\nwit\t0"


@pytest.fixture
def folder(tmp_path):
    for part, text in (("train", TRAIN), ("dev", DEV), ("test", DEV)):
        (tmp_path / f"sst2_{part}.tsv").write_text(text)
    return tmp_path


def ready(folder, **options):
    data = SST2DataModule(folder, **options)
    data.prepare_data()
    data.setup()
    return data


def test_the_vocabulary_is_the_training_files_most_frequent_word_first(folder):
    data = ready(folder)
    assert data.vocabulary == {"<pad>": 0, "<unk>": 1, "film": 2, "a": 3, "wit": 4}
    assert len(ready(folder, min_count=1).vocabulary) == 12


def test_a_batch_is_padded_with_zeros_to_its_own_longest_sentence(folder):
    data = ready(folder)
    tokens, labels = next(iter(data.val_dataloader()))
    assert torch.equal(tokens, torch.tensor([[3, 1, 2], [4, 0, 0]]))
    assert tokens.dtype == torch.int64
    assert labels.tolist() == [1, 0]


def test_words_are_compared_in_lower_case(folder):
    assert ready(folder)._splits["train"][0][0].tolist()[0] == 3  # "A"


def test_the_order_depends_on_seed_and_epoch_only(folder):
    def order(seed, epoch):
        loader = ready(folder, seed=seed, batch_size=1).train_dataloader()
        loader.sampler.set_epoch(epoch)
        torch.rand(3)  # other use of the global generator
        return [tokens.tolist() for tokens, _ in loader]

    assert order(0, 0) == order(0, 0)
    assert len({str(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) > 1
    assert sorted(order(0, 0)) == sorted(order(5, 7))


def test_limit_takes_the_first_lines_and_their_words_only(folder):
    data = ready(folder, limit=2, min_count=1)
    assert [len(data._splits[part]) for part in ("train", "val", "test")] == [2, 2, 2]
    assert set(data.vocabulary) == {"<pad>", "<unk>", "a", "fine", "film", "dull"}


def test_it_can_be_sent_to_worker_processes(folder):
    data = ready(folder)
    again = pickle.loads(pickle.dumps(data._splits["val"]))
    assert torch.equal(again[0][0], data._splits["val"][0][0])


@pytest.mark.parametrize(
    ("line", "number"),
    [
        (b"no label", 2),
        (b"two\ttabs\t1", 2),
        (b"a label beyond\t2", 2),
        (b"a word for a label\tgood", 2),
        (b"   \t1", 2),
        (b"", 2),
        (b"\xff\xfe\t1", 2),
    ],
)
def test_a_malformed_line_is_named_by_file_and_number(tmp_path, line, number):
    path = tmp_path / "sst2_train.tsv"
    path.write_bytes(b"fine\t1\r\n" + line + b"\r\ndull\t0\r\n")
    with pytest.raises(ValueError, match=rf"sst2_train\.tsv, line {number}: "):
        read_sentences(path)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "sst2_train.tsv").touch()
    with pytest.raises(ValueError, match=r"sst2_train\.tsv holds no lines"):
        read_sentences(tmp_path / "sst2_train.tsv")


@pytest.mark.parametrize("root", [None, "/no/such/folder"])
def test_missing_file_names_both_ways(root, monkeypatch):
    monkeypatch.delenv("EFFNN_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"root=.*EFFNN_DATA"):
        SST2DataModule(root).prepare_data()


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"min_count": 0}, {"limit": 0}])
def test_bad_sizes_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SST2DataModule(**options)


class _Recorder(L.LightningModule):
    """Keeps the token ids of each training batch; trains one number."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0].tolist())
        return self.weight**2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_resumed_fit_sees_the_batches_of_an_uninterrupted_one(folder, tmp_path):
    def fit(epochs, ckpt_path=None):
        model = _Recorder()
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", limit_val_batches=0, **quiet)
        trainer.fit(model, SST2DataModule(folder, batch_size=2, seed=3), ckpt_path=ckpt_path)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return model.seen

    whole = fit(2)
    assert fit(1) + fit(2, tmp_path / "last.ckpt") == whole
    assert whole[:2] != whole[2:]


def test_the_real_files_have_the_published_sizes(data_folder):
    data = ready(data_folder)
    assert [len(data._splits[part]) for part in ("train", "val", "test")] == [6920, 872, 1821]
    assert len(data.vocabulary) == 7206
    labels = torch.tensor([label for _, label in data._splits["test"].rows])
    assert torch.bincount(labels).tolist() == [912, 909]
