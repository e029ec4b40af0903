"""Every callback times every feature of Lightning: what each cell asserts is the docstring of its feature."""

from pathlib import Path

import features_trainer
import features_training
import pytest
from callback_cases import CASES
from lightning.fabric.utilities.exceptions import MisconfigurationException

FEATURES = features_training.FEATURES | features_trainer.FEATURES
CARD = Path(__file__).parents[2] / "callbacks" / "README.md"
MARKS = ("<!-- matrix -->", "<!-- end of matrix -->")
QUICK = {
    "automatic optimisation",
    "manual optimisation",
    "gradient accumulation",
    "bf16-mixed",
    "StochasticWeightAveraging",
    "ModelCheckpoint",
    "EarlyStopping",
    "validate, test, predict",
    "pytorch_lightning",
}
CELLS = [
    pytest.param(case, name, id=f"{case.name}-{name}", marks=[] if name in QUICK else [pytest.mark.slow])
    for case in CASES
    for name in FEATURES
]


@pytest.mark.parametrize(("case", "name"), CELLS)
def test_cell(case, name, tmp_path):
    if name not in case.refuses:
        FEATURES[name](case, tmp_path)
        return
    with pytest.raises((MisconfigurationException, TypeError, ValueError), match=case.refuses[name]):
        FEATURES[name](case, tmp_path)


def table():
    """The matrix in markdown; what is refused says so."""
    lines = [
        "| | " + " | ".join(f"`{case.name}`" for case in CASES) + " | what is asserted |",
        "| --- |" + " --- |" * (len(CASES) + 1),
    ]
    for name, check in FEATURES.items():
        cells = ["refuses" if name in case.refuses else "yes" for case in CASES]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {check.__doc__} |")
    return "\n".join(lines)


def test_the_card_shows_the_matrix():
    text = CARD.read_text()
    shown = text.partition(MARKS[0])[2].partition(MARKS[1])[0].strip()
    assert shown == table(), "write it anew: python tests/integration/test_matrix.py"


if __name__ == "__main__":
    before, _, rest = CARD.read_text().partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    CARD.write_text(f"{before}{MARKS[0]}\n{table()}\n{MARKS[1]}{after}")
