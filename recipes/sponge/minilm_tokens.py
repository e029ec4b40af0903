"""Fifty characters that cost a sentence encoder most: MiniLM with its WordPiece tokenizer, SST-2 as natural sentences.

    pip install "lightning_effnn[text]"
    EFFNN_DATA=/path/to/data effnn run sponge/minilm_tokens --seeds 3

Natural sentences are cut to ``--length`` characters. A genetic search looks for strings of as many characters that
cost most energy on the chip, out of ASCII and out of Unicode's first plane; chance has the same budget. Reported:
tokens, simulated energy and latency, wall time on this machine, and what a guard profiled on other natural sentences
stops. Results are kept in ``--out`` as they come; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from lightning_effnn import robustness as rb
from lightning_effnn._files import write_text
from lightning_effnn._lookup import find_file
from lightning_effnn.data.sst2 import read_sentences
from lightning_effnn.modules import MiniLM, MiniLMTokenizer, minilm_folder
from lightning_effnn.recipes.sponge._strings import guard_share, table, wall_ms

Row = dict[str, Any]
_TIMED = 30
"""Natural sentences whose wall time is measured."""
_TOP = 10
"""Crafted strings that a gain is the mean of."""
ALPHABETS = {
    "ascii": "".join(map(chr, range(32, 127))),
    "unicode": "".join(chr(c) for c in range(32, 0xD7A4) if unicodedata.category(chr(c))[0] in "LNPSZ"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(prog="effnn run sponge/minilm_tokens", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--length", type=int, default=50, help="characters")
    parser.add_argument("--pool", type=int, default=128)
    parser.add_argument("--generations", type=int, default=300)
    parser.add_argument("--accelerator", default="eyeriss_like")
    parser.add_argument("--out", type=Path, default=Path("runs/sponge_minilm/results.json"))
    args = parser.parse_args(argv)
    rows: list[Row] = json.loads(args.out.read_text()) if args.out.exists() else []
    study = _Study(args.length, args.accelerator)
    for seed in range(args.seeds):
        for alphabet in ALPHABETS:
            key = {"seed": seed, "alphabet": alphabet, "length": args.length, "pool": args.pool,
                   "generations": args.generations, "accelerator": args.accelerator}  # fmt: skip
            if any(all(row[name] == value for name, value in key.items()) for row in rows):
                continue
            rows.append(key | study.run(key))
            _write(rows, args.out)
    study.time(rows)  # of this machine, now
    _write(rows, args.out)
    columns = ("tokens", "energy_uJ", "latency_us")
    Console(width=140).print(table(f"{args.length} characters, MiniLM on {args.accelerator}", rows, columns))
    for alphabet in ALPHABETS:
        times = [row["wall_ms"] for row in rows if row["alphabet"] == alphabet]
        natural, best = (statistics.mean(ms[name] for ms in times) for name in ("natural", "best"))
        print(f"wall time, {alphabet}: {natural:.1f} ms, costliest string {best:.1f} ms ({best / natural:.2f}x)")
    return 0


def _write(rows: list[Row], path: Path) -> None:
    write_text(path, json.dumps(rows, indent=1) + "\n")


class _Study:
    """The network, its tokenizer, natural sentences, and a guard."""

    def __init__(self, length: int, accelerator: str) -> None:
        folder = minilm_folder()
        self.net, self.tokenizer = MiniLM(folder).eval(), MiniLMTokenizer(folder)
        self.energy = rb.SequenceEnergy(self.net, accelerator)
        sentences = {
            part: [" ".join(words) for words, _ in read_sentences(find_file(f"sst2_{part}.tsv"))]
            for part in ("train", "dev", "test")
        }
        cut = {part: [text[:length] for text in texts if len(text) >= length] for part, texts in sentences.items()}
        self.profiled, self.natural = cut["train"], cut["dev"] + cut["test"]

    @cached_property
    def guard(self) -> rb.EnergyGuard:
        """Profiled on the sentences of the training file."""
        guard = rb.EnergyGuard(self.net, policy="flag")
        return guard.profile([self.tokenizer(self.profiled[n : n + 64]) for n in range(0, len(self.profiled), 64)])

    def time(self, rows: list[Row]) -> None:
        """Measure the wall time of natural sentences and of each row's costliest string, in turns."""
        groups = {"natural": self.natural[:_TIMED]} | {str(n): [row["best"]] for n, row in enumerate(rows)}
        with torch.no_grad():
            spent = wall_ms(lambda text: self.net(self.tokenizer([text])), groups)
        for n, row in enumerate(rows):
            row["wall_ms"] = {"natural": spent["natural"], "best": spent[str(n)]}

    def run(self, key: Row) -> Row:
        """Attack with one seed and one alphabet."""
        chars, seed, size = ALPHABETS[key["alphabet"]], key["seed"], (key["length"], key["pool"], key["generations"])
        chance = torch.randperm(len(self.natural), generator=torch.Generator().manual_seed(seed))
        natural = [self.natural[n] for n in chance.tolist()]
        crafted = rb.sponge_text_genetic(self._energy_of, chars, *size, natural=natural, seed=seed)
        drawn = rb.sponge_text_random(self._energy_of, chars, *size, seed=seed)
        groups = {"natural": natural, "random": drawn[:_TOP], "genetic": crafted[:_TOP]}
        found = {name: self._costs(texts) for name, texts in groups.items()}
        one = self.tokenizer(natural[:1])
        row = {
            "costs": found,
            "best": crafted[0],
            "guard": {
                "profiled": int(self.guard.profiled),
                "most_tokens": int(self.guard.most_length),
                "stopped": self._stopped(crafted),
                "natural_refused": self._stopped(natural),
                "share_of_time": guard_share(self.guard, self.net, one),
            },
        }
        gains = {name: found["genetic"][name] / value for name, value in found["natural"].items()}
        print(
            f"seed {seed}, {key['alphabet']}: gain " + ", ".join(f"{n} {g:.2f}" for n, g in gains.items()), flush=True
        )
        return row

    def _energy_of(self, texts: list[str]) -> Tensor:
        return self.energy(self.tokenizer.lengths(texts))

    def _costs(self, texts: list[str]) -> dict[str, float]:
        lengths = self.tokenizer.lengths(texts)
        return {
            "tokens": float(torch.tensor(lengths).float().mean()),
            "energy_uJ": float(self.energy(lengths).mean()),
            "latency_us": float(self.energy.latency_us(lengths).mean()),
        }

    def _stopped(self, texts: list[str]) -> float:
        """Share of strings that the guard refuses; their tokens are counted as it would, the network isn't run."""
        lengths = torch.tensor(self.tokenizer.lengths(texts))
        return float((lengths > self.guard.most_length).float().mean())


if __name__ == "__main__":
    raise SystemExit(main())
