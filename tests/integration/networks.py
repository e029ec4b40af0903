"""Networks of the matrix that train in other ways than by one optimiser of torch."""

import copy

import callback_cases as cases
import torch
from optimizers import Lookahead, ScheduleFree, SharpnessAware
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Network = cases.NETWORKS["lightning"]


def seeded(kind, *args, **kw):
    torch.manual_seed(0)
    return kind(*args, **kw)


class Sharp(Network):
    def configure_optimizers(self):
        return SharpnessAware(torch.optim.Adam(self.parameters(), 0.02))


class SharpInTwoCalls(Sharp):
    def __init__(self):
        super().__init__(manual=True)

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        here = self.backward_of(batch)
        optimizer.up()
        optimizer.losses.append((here, self.backward_of(batch)))
        optimizer.down()
        self.steps += 1

    def backward_of(self, batch):
        self.zero_grad()
        loss = self.loss(batch)
        self.manual_backward(loss)
        return float(loss)


class LookingAhead(Network):
    def configure_optimizers(self):
        return Lookahead(torch.optim.Adam(self.parameters(), 0.02))


class WithoutSchedule(Network):
    """Validated, and left after the fit, at the average."""

    def configure_optimizers(self):
        return ScheduleFree(self.parameters(), 0.1)

    def on_train_start(self):
        self.optimizers().optimizer.train()

    def on_validation_model_eval(self):
        self.optimizers().optimizer.eval()
        super().on_validation_model_eval()

    def on_validation_model_train(self):
        self.optimizers().optimizer.train()
        super().on_validation_model_train()

    def on_train_end(self):
        self.optimizers().optimizer.eval()


class Taught(Network):
    """Learns from a network that stays as it is too."""

    def __init__(self):
        super().__init__()
        other = Network()
        self.teacher = nn.Sequential(other.a, other.b).requires_grad_(False).eval()

    def training_step(self, batch, batch_idx):
        return self.loss(batch) + F.mse_loss(self(batch[0]), self.teacher(batch[0]))


class Followed(Network):
    """A momentum encoder follows it, moved in each training step as in BYOL; it keeps what it saw."""

    rate = 0.9

    def __init__(self):
        super().__init__()
        self.target = copy.deepcopy(nn.Sequential(self.a, self.b)).requires_grad_(False)
        self.seen = []

    @torch.no_grad()
    def follow(self):
        online = [*self.a.parameters(), *self.b.parameters()]
        self.seen.append([p.clone() for p in online])
        for mine, p in zip(self.target.parameters(), online, strict=True):
            mine.mul_(self.rate).add_(p, alpha=1 - self.rate)

    def training_step(self, batch, batch_idx):
        self.follow()
        return self.loss(batch) + F.mse_loss(self(batch[0]), self.target(batch[0]))


class Adapter(nn.Module):
    """A linear layer that stays as it is, and a product of two small ones that trains (Hu et al. 2021, LoRA)."""

    def __init__(self, base, rank=4):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Adapted(Network):
    """Only adapters of the last layer train."""

    weights = ("b.3.down.weight", "b.3.up.weight")
    macs = Network.macs + 32 * 4 + 4 * 10

    def __init__(self):
        super().__init__()
        self.requires_grad_(False)
        self.b[3] = Adapter(self.b[3])

    def configure_optimizers(self):
        return torch.optim.Adam((p for p in self.parameters() if p.requires_grad), 0.02)


class Words(Network):
    """Predicts the next of 10 tokens; its head is its table of tokens."""

    weights = ("a.0.weight", "b.0.weight")
    macs = 7 * (32 * 32 + 32 * 10)

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Embedding(10, 32), nn.LayerNorm(32))
        self.b = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 10, bias=False))
        self.b[3].weight = self.a[0].weight
        self.example_input_array = torch.zeros(1, 7, dtype=torch.long)

    def loss(self, batch):
        return F.cross_entropy(self(batch[0]).flatten(0, 1), batch[1].flatten())


def words(batches=cases.BATCHES):
    tokens = torch.randint(0, 10, (batches * cases.BATCH, 8), generator=torch.Generator().manual_seed(1)).cumsum(1) % 10
    data = torch.utils.data.TensorDataset(tokens[:, :-1], tokens[:, 1:])
    return torch.utils.data.DataLoader(data, cases.BATCH)


class Checkpointed(Network):
    """Runs its second part again in the backward pass, in place of keeping what it held."""

    def __init__(self, reentrant):
        super().__init__()
        self.reentrant, self.again = reentrant, 0

    def forward(self, x):
        x = self.a(x)
        return checkpoint(self.b, x, use_reentrant=self.reentrant) if self.training else self.b(x)
