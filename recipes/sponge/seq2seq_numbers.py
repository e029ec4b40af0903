"""Six characters that make an encoder-decoder write without end: it learnt to spell numbers as words.

    effnn run sponge/seq2seq_numbers
    effnn run sponge/seq2seq_numbers --seeds 3 --out runs/sponge_numbers/results.json

A small recurrent network with attention trains for a minute or two, then writes greedily to the end of sequence or to
``--limit`` tokens. A genetic search looks for strings of ``--length`` characters that make it spend most energy on the
chip, out of digits alone and out of all characters that numbers have; chance has the same budget. A guard profiled on
other numbers stops what writes longer. Results are kept in ``--out`` as they come; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from torch import Tensor

from lightning_effnn import robustness as rb
from lightning_effnn._files import write_text
from lightning_effnn.data import NumbersDataModule
from lightning_effnn.data.numbers import CHARACTERS, END, WORDS, encode_characters, natural
from lightning_effnn.modules import SequenceToSequence
from lightning_effnn.recipes.sponge._strings import guard_share, table, wall_ms

Row = dict[str, Any]
_NATURAL = 3000
"""Numbers that are measured; as many others make the guard's profile."""
_TIMED = 30
"""Of them, those whose wall time is measured."""
_TOP = 10
"""Crafted strings that a gain is the mean of."""
ALPHABETS = {"digits": CHARACTERS[:10], "digits, minus, point": CHARACTERS}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(prog="effnn run sponge/seq2seq_numbers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=40_000, help="training numbers")
    parser.add_argument("--length", type=int, default=6, help="characters of an attacked input")
    parser.add_argument("--limit", type=int, default=256, help="most tokens of an output")
    parser.add_argument("--pool", type=int, default=128)
    parser.add_argument("--generations", type=int, default=30)
    parser.add_argument("--accelerator", default="eyeriss_like")
    parser.add_argument("--out", type=Path, default=Path("runs/sponge_numbers/results.json"))
    args = parser.parse_args(argv)
    rows: list[Row] = json.loads(args.out.read_text()) if args.out.exists() else []
    for seed in range(args.seeds):
        key = {name: getattr(args, name) for name in ("epochs", "size", "length", "limit", "pool", "generations")}
        key |= {"seed": seed, "accelerator": args.accelerator}
        missing = [
            alphabet
            for alphabet in ALPHABETS
            if not any(
                all(row[name] == value for name, value in (key | {"alphabet": alphabet}).items()) for row in rows
            )
        ]
        if not missing:
            continue
        study = _Study(key)
        for alphabet in missing:
            rows.append(key | {"alphabet": alphabet} | study.run(key, alphabet))
            text = json.dumps(rows, indent=1) + "\n"
            write_text(args.out, text)
    columns = ("steps", "energy_uJ", "latency_us", "wall_ms")
    title = f"{args.length} characters in, at most {args.limit} tokens out, on {args.accelerator}"
    Console(width=140).print(table(title, rows, columns))
    return 0


class _Study:
    """A network that was trained, what its outputs cost, and a guard around it."""

    def __init__(self, key: Row) -> None:
        L.seed_everything(key["seed"], verbose=False)
        data = NumbersDataModule(size=key["size"], seed=key["seed"])
        self.net = SequenceToSequence(len(CHARACTERS) + 1, len(WORDS), hidden_channels=32, limit=key["limit"])
        trainer = L.Trainer(
            max_epochs=key["epochs"], logger=False, enable_checkpointing=False, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(self.net, data)
        self.exact = float(trainer.callback_metrics["val/exact"])
        self.net.eval()
        self.energy = rb.GenerationEnergy(self.net.encoder, self.net.decoder, key["accelerator"])
        chance = random.Random(key["seed"])
        drawn = [natural(chance, key["length"]) for _ in range(2 * _NATURAL)]
        self.profiled, self.natural = drawn[:_NATURAL], drawn[_NATURAL:]
        self.guard = rb.GenerationGuard(self.net, end=END)
        self.guard.profile([encode_characters(self.profiled)])

    def run(self, key: Row, alphabet: str) -> Row:
        """Attack with one alphabet."""
        chars, size = ALPHABETS[alphabet], (key["length"], key["pool"], key["generations"])
        crafted = rb.sponge_text_genetic(self._energy_of, chars, *size, natural=self.natural, seed=key["seed"])
        drawn = rb.sponge_text_random(self._energy_of, chars, *size, seed=key["seed"])
        groups = {"natural": self.natural, "random": drawn[:_TOP], "genetic": crafted[:_TOP]}
        found = {name: self._costs(texts) for name, texts in groups.items()}
        spent_ms = wall_ms(
            lambda text: self.net.generate(encode_characters([text])),
            {name: texts[:_TIMED] for name, texts in groups.items()},
        )
        for name, ms in spent_ms.items():
            found[name]["wall_ms"] = ms
        guarded = self.guard(encode_characters(crafted[:_TOP])).ne(0).sum(1)
        spent = float(self.energy([key["length"]] * len(guarded), guarded).mean())
        row = {
            "exact": self.exact,
            "costs": found,
            "best": crafted[0],
            "guard": {
                "profiled": int(self.guard.profiled),
                "most_steps": int(self.guard.most_steps),
                "stopped": self._stopped(self._sponges(crafted)),
                "natural_refused": self._stopped(self.natural),
                "share_of_time": guard_share(self.guard, self.net, encode_characters(self.natural[:1])),
                "energy_uJ": spent,
            },
        }
        gains = {name: found["genetic"][name] / value for name, value in found["natural"].items()}
        print(f"seed {key['seed']}, {alphabet}: {self.exact:.1%} of numbers right, gain "
              + ", ".join(f"{name} {gain:.2f}" for name, gain in gains.items()), flush=True)  # fmt: skip
        return row

    def _steps(self, texts: list[str]) -> Tensor:
        return self.net.generate(encode_characters(texts)).ne(0).sum(1)

    def _energy_of(self, texts: list[str]) -> Tensor:
        return self.energy(map(len, texts), self._steps(texts))

    def _costs(self, texts: list[str]) -> dict[str, float]:
        steps = self._steps(texts)
        return {
            "steps": float(steps.float().mean()),
            "energy_uJ": float(self.energy(map(len, texts), steps).mean()),
            "latency_us": float(self.energy.latency_us(map(len, texts), steps).mean()),
        }

    def _sponges(self, texts: list[str]) -> list[str]:
        """Those that cost over twice the mean of natural ones; out of digits alone there may be none."""
        costly = self._energy_of(texts) > 2 * self._energy_of(self.natural).mean()
        return [text for text, over in zip(texts, costly.tolist(), strict=True) if over]

    def _stopped(self, texts: list[str]) -> float | None:
        """Share of inputs whose output the guard cuts short; None of none."""
        if not texts:
            return None
        self.guard(encode_characters(texts))
        assert self.guard.verdict is not None
        return float(self.guard.verdict.refused.float().mean())


if __name__ == "__main__":
    raise SystemExit(main())
