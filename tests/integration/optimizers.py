"""Optimisers that move weights in several steps of their own, as small as they can be; each around one of torch's."""

import torch


class Around(torch.optim.Optimizer):
    """Holds the groups and the state of the optimiser inside."""

    def __init__(self, inner, **defaults):
        super().__init__(inner.param_groups, inner.defaults | defaults)
        self.inner, self.param_groups = inner, inner.param_groups

    def parameters(self):
        return [p for group in self.param_groups for p in group["params"]]


class SharpnessAware(Around):
    """Up to where the loss is larger, back, and down by the gradient found there (Foret et al. 2020, SAM).

    ``step(closure)`` does it all and notes the losses at both places; or ``up``, another backward pass, and ``down``.
    It checks that it gets back.
    """

    def __init__(self, inner, radius=0.02):
        super().__init__(inner, radius=radius)
        self.losses, self.places = [], []

    @torch.no_grad()
    def up(self):
        norm = torch.stack([p.grad.norm() for p in self.parameters()]).norm()
        self.places = [(p, p.clone(), p.grad * (self.defaults["radius"] / norm)) for p in self.parameters()]
        for p, _, move in self.places:
            p.add_(move)
        self.zero_grad()

    @torch.no_grad()
    def down(self):
        for p, start, move in self.places:
            p.sub_(move)
            assert torch.allclose(p, start, atol=1e-6)
        self.inner.step()

    def step(self, closure):
        with torch.enable_grad():
            here = closure()
        self.up()
        with torch.enable_grad():
            self.losses.append((float(here), float(closure())))
        self.down()
        return here


class Lookahead(Around):
    """Every ``every`` steps half of the way back to slow weights, which follow (Zhang et al. 2019)."""

    def __init__(self, inner, every=4):
        super().__init__(inner, every=every)
        self.steps = 0

    def step(self, closure=None):
        loss = self.inner.step(closure)
        self.steps += 1
        for p in self.parameters():
            slow = self.state[p].setdefault("slow", p.detach().clone())
            if self.steps % self.defaults["every"] == 0:
                slow.lerp_(p.detach(), 0.5)
                p.data.copy_(slow)
        return loss


class ScheduleFree(torch.optim.Optimizer):
    """SGD at a mean of two sequences, evaluated at the average of one of them: ``eval`` and ``train`` exchange them.

    Defazio et al. (2024), "The Road Less Scheduled".
    """

    def __init__(self, parameters, lr, share=0.9):
        super().__init__(parameters, {"lr": lr, "share": share})
        self.training, self.steps = False, 0

    def _towards_z(self, weight):
        with torch.no_grad():
            for p in (p for group in self.param_groups for p in group["params"] if p in self.state):
                p.lerp_(self.state[p]["z"], weight)

    def eval(self):
        if self.training:
            self._towards_z(1 - 1 / self.defaults["share"])
        self.training = False

    def train(self):
        if not self.training:
            self._towards_z(1 - self.defaults["share"])
        self.training = True

    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        assert self.training, "a step at the average"
        self.steps += 1
        share, lr, c = self.defaults["share"], self.defaults["lr"], 1 / self.steps
        with torch.no_grad():
            for p in (p for group in self.param_groups for p in group["params"]):
                z = self.state[p].setdefault("z", p.clone())
                p.lerp_(z, c)
                p.sub_(p.grad, alpha=lr * (1 - share * (1 - c)))
                z.sub_(p.grad, alpha=lr)
        return loss
