"""Who chooses: logits for each named choice, kept apart from the network they choose for."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_effnn.search.relaxation import RELAXATIONS, Relaxation, gumbel_noise, mixture, top1

Gates = dict[str, Tensor]
"""For each choice, a vector over its options; see :mod:`lightning_effnn.search.relaxation`."""


class Controller(nn.Module):
    """One vector of logits for each choice, all zero at first: every option as likely as the others.

    A module of its own: its logits belong to its own optimiser, and its random numbers to its own generator, whose
    state is part of ``state_dict``.

    Args:
        options: the options of each choice, by the choice's name. A choice with one option is made already.
        relaxation: ``"top1"`` runs one option at a time, ``"mixture"`` all of them weighted.
        seed: of the Gumbel noise.

    Raises:
        ValueError: a choice without options, or with the same one twice; an unknown relaxation.

    >>> controller = Controller({"width": (16, 32), "bits": (4,)})
    >>> gates = controller.sample()
    >>> gates["bits"].tolist(), controller.probabilities["width"].tolist(), controller.chosen()
    ([1.0], [0.5, 0.5], {'width': 16, 'bits': 4})
    """

    def __init__(
        self, options: Mapping[str, Sequence[Hashable]], relaxation: Relaxation = "top1", seed: int = 0
    ) -> None:
        super().__init__()
        if relaxation not in RELAXATIONS:
            raise ValueError(f"relaxation is {relaxation!r}: use one of {', '.join(RELAXATIONS)}")
        for name, names in options.items():
            if not names or len(set(names)) != len(names):
                raise ValueError(f"options of {name!r} are {list(names)!r}: use one or more, each once")
        self.options = {name: tuple(names) for name, names in options.items()}
        self.relaxation = relaxation
        # Names hold dots, which parameters' names may not.
        self.logits = nn.ParameterList([nn.Parameter(torch.zeros(len(names))) for names in self.options.values()])
        self._generator = torch.Generator().manual_seed(seed)

    def sample(self, temperature: float = 1.0, noise: float = 1.0) -> Gates:
        """Draw a gate for each choice.

        Args:
            temperature, noise: as in :func:`lightning_effnn.search.relaxation.top1`.
        """
        draw = top1 if self.relaxation == "top1" else mixture
        return {
            name: draw(logits, temperature, noise, self._generator)
            for name, logits in zip(self.options, self.logits, strict=True)
        }

    @torch.no_grad()
    def draw(self) -> dict[str, int]:
        """Draw the number of an option for each choice, with its probability; quicker than gates, without a gradient.

        >>> Controller({"bits": (4, 8)}, seed=1).draw()
        {'bits': 0}
        """
        logits = torch.nn.utils.rnn.pad_sequence(list(self.logits), batch_first=True, padding_value=-torch.inf).cpu()
        picks = (logits + gumbel_noise(logits.shape, self._generator)).argmax(1).tolist()
        return dict(zip(self.options, picks, strict=True))

    @property
    def probabilities(self) -> Gates:
        """Softmax of the logits, differentiable; what a cost is the expectation over."""
        return {name: torch.softmax(logits, -1) for name, logits in zip(self.options, self.logits, strict=True)}

    @property
    def entropy(self) -> Tensor:
        """Mean over the choices with more than one option of entropy over its largest value: 1 open, 0 decided."""
        shares = [
            torch.distributions.Categorical(logits=logits).entropy()  # type: ignore[no-untyped-call]
            / torch.tensor(float(len(logits)), device="cpu").log().to(logits)
            for logits in self.logits
            if len(logits) > 1
        ]
        if not shares:
            return torch.zeros((), device=next((logits.device for logits in self.logits), None))
        return torch.stack(shares).mean()

    def chosen(self) -> dict[str, Any]:
        """The most probable option of each choice; of equals, the first."""
        return {
            name: options[int(logits.argmax())]
            for (name, options), logits in zip(self.options.items(), self.logits, strict=True)
        }

    def gates_of(self, chosen: Mapping[str, Any]) -> Gates:
        """One-hot gates, without gradient, of given options.

        Args:
            chosen: an option for each choice.

        Raises:
            ValueError: a choice without an option, or one that it doesn't have.
        """
        gates = {}
        for (name, options), logits in zip(self.options.items(), self.logits, strict=True):
            if chosen.get(name) not in options:
                raise ValueError(f"{name} is {chosen.get(name)!r}: use one of {', '.join(map(repr, options))}")
            gates[name] = torch.zeros_like(logits).index_fill(
                0, torch.tensor(options.index(chosen[name]), device=logits.device), 1.0
            )
        return gates

    def get_extra_state(self) -> Tensor:
        """State of the generator."""
        return self._generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on with the draws where the state was taken."""
        self._generator.set_state(state.cpu())
