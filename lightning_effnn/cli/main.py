"""Entry point of the ``effnn`` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console

from lightning_effnn import __version__
from lightning_effnn._files import descriptor
from lightning_effnn.cli import recipes
from lightning_effnn.cli._errors import UsageError

# torch and Lightning are imported inside the commands that need them: `effnn ls` answers at once.


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``effnn`` and return its exit code: 0 done, 2 used wrongly; a model's own error comes out."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    traceback = False
    try:
        options = build_parser().parse_args(arguments)
        traceback = options.traceback
        _make_working_folder_importable()
        return int(options.command(options) or 0)
    except UsageError as error:
        if traceback:
            raise
        print(f"effnn: error: {error}", file=sys.stderr)
        return 2
    except SystemExit as leaving:  # the parsers' way to end: help, version, a wrong option
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
            return 1
        return leaving.code or 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    parser = argparse.ArgumentParser(
        prog="effnn",
        description="Train and profile networks with their cost on a chip in view.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"effnn {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where a refused value was refused")
    parser.set_defaults(command=lambda options: parser.print_help())
    commands = parser.add_subparsers(title="commands", metavar="")
    _add_recipe_commands(commands)
    _add_hardware_commands(commands)
    _add_artifact_commands(commands)
    _add_compression_commands(commands)
    _add_export_command(commands)
    _add_attack_command(commands)
    return parser


_Commands = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns


def _add_recipe_commands(commands: _Commands[argparse.ArgumentParser]) -> None:
    ls = commands.add_parser("ls", help="list the recipes, each with one line of what it does")
    ls.set_defaults(command=_ls)

    cp = commands.add_parser("cp", help="copy a recipe, to edit it")
    cp.add_argument("name", help="a name from `effnn ls`")
    cp.add_argument("destination", help="a file or a folder")
    cp.add_argument("--force", action="store_true", help="overwrite an existing file")
    cp.set_defaults(command=_cp)

    run = commands.add_parser(
        "run",
        help="run a recipe",
        usage="effnn run [-h] recipe [--key value ...]",
        description="Run a recipe. Every key of its YAML can be overridden: --trainer.max_epochs 3. "
        "`effnn run RECIPE --help` explains the keys, `effnn run RECIPE --print_config` shows their values.",
    )
    run.add_argument("recipe", help="a name from `effnn ls`, or your own .yaml or .py file")
    run.add_argument("overrides", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    run.set_defaults(command=_run)

    sweep = commands.add_parser(
        "sweep",
        help="run a recipe with every combination of some values",
        description="Run a YAML recipe with every combination of the values given: one after the other, by Ray Tune "
        "(extra sweep), or as W&B runs (extra wandb), offline without a login. Each has a folder of its own.",
    )
    sweep.add_argument("recipe", help="a name from `effnn ls`, or your own .yaml file")
    sweep.add_argument("--param", action="append", default=[], metavar="KEY=A,B,C", help="a key and its values")
    sweep.add_argument("--engine", choices=("here", "ray", "wandb"), default="here", help="who runs it (default: here)")
    sweep.add_argument("--metric", default="val/acc", help="key to rank by (default: val/acc)")
    sweep.add_argument("--mode", choices=("min", "max"), default="max", help="which of it is best (default: max)")
    sweep.add_argument("--at-once", type=int, default=1, help="trials that Ray runs at once (default: 1)")
    sweep.add_argument("--folder", default="runs/sweep", help="where trials and results go (default: runs/sweep)")
    sweep.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="the same for all")
    sweep.set_defaults(command=_sweep)


def _add_hardware_commands(commands: _Commands[argparse.ArgumentParser]) -> None:
    hw = commands.add_parser("hw", help="list the accelerators, with their main figures")
    hw.add_argument("accelerators", nargs="*", help="only these: names, or YAML files of your own")
    hw.set_defaults(command=_hw)

    profile = commands.add_parser(
        "profile",
        help="say what one inference of a model costs",
        description="Trace a model on one random batch and print what it costs on an accelerator.",
    )
    profile.add_argument("target", help="module:name of a model, or of what returns one without arguments")
    profile.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="SHAPE[:TYPE[:BELOW]]",
        help="an input: 1,3,224,224 or 1,128:int64 or 1,128:int64:30000 (integers below 30000); "
        "repeat it for more inputs; a LightningModule's example_input_array needs none",
    )
    profile.add_argument("--accelerator", default="eyeriss_like", help="a name from `effnn hw`, or a YAML file")
    profile.add_argument("--batch-size", type=int, default=1, help="inputs a deployed batch (default: 1)")
    profile.add_argument(
        "--batch-dim", type=int, metavar="AXIS", help="axis of the batch in the inputs (found if left)"
    )
    profile.add_argument("--inferences", type=int, metavar="N", help="how many the inputs hold (found if left)")
    profile.add_argument("--dtype", help="cast model and inputs to this type first, such as bfloat16")
    profile.add_argument(
        "--meta", action="store_true", help="shapes only, no values and no memory: everything counts as dense"
    )
    profile.add_argument(
        "--check-batches",
        action="store_true",
        help="also trace batches of 1, 2, 3 and 5 copies of the first sample, and say whether they cost the same",
    )
    profile.add_argument("--depth", type=int, default=2, help="levels of modules to show (default: 2)")
    profile.add_argument("--csv", metavar="FILE", help="write one row an operation")
    profile.add_argument("--plot", metavar="FILE", help="write the figure (.png, .svg or .pdf)")
    profile.set_defaults(command=_profile)


def _add_artifact_commands(commands: _Commands[argparse.ArgumentParser]) -> None:
    inspect = commands.add_parser("inspect", help="say what a compressed network holds and what each tensor takes")
    inspect.add_argument("file", help="a .effnn file")
    inspect.add_argument("--plot", metavar="FILE", help="draw the levels of the weights (.png, .svg or .pdf)")
    inspect.set_defaults(command=_inspect)

    decompress = commands.add_parser("decompress", help="write a compressed network as a plain safetensors file")
    decompress.add_argument("file", help="a .effnn file")
    decompress.add_argument("-o", "--output", required=True, metavar="FILE", help="where to, such as model.safetensors")
    decompress.add_argument("--force", action="store_true", help="overwrite an existing file")
    decompress.set_defaults(command=_decompress)


def _add_compression_commands(commands: _Commands[argparse.ArgumentParser]) -> None:
    compress = commands.add_parser(
        "compress",
        help="make a small file of a checkpoint, without training",
        description="Prune, focus and encode ready weights. Training with FocusedCompression loses less.",
    )
    _add_weights(compress)
    compress.add_argument("-o", "--output", required=True, metavar="FILE", help="the .effnn file to write")
    compress.add_argument("--bits", type=int, default=5, help="of a weight's code, 3 to 7 (default: 5)")
    compress.add_argument("--sparsity", type=float, default=0.0, help="share of weights to cut (default: none)")
    compress.add_argument("--other", choices=("fp32", "fp16", "int8"), default="fp32", help="biases and norms")
    compress.add_argument("--force", action="store_true", help="overwrite an existing file")
    compress.set_defaults(command=_compress)


def _add_weights(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "checkpoint",
        help="the model's weights: .safetensors, its shards' .index.json, .ckpt, .pt, .pth, .bin or .effnn",
    )
    command.add_argument("--model", required=True, help="module:name of the model, or of what returns it")
    command.add_argument(
        "--network", metavar="NAME", help="which, where the file has several that fit, such as student"
    )


def _add_export_command(commands: _Commands[argparse.ArgumentParser]) -> None:
    export = commands.add_parser(
        "export",
        help="make an ONNX file that runs in integers of a checkpoint",
        description="Round weights, biases and activations, with ranges from data, and write what onnxruntime executes "
        "with integer kernels; then run it and compare. Training the prepared model loses less.",
    )
    _add_weights(export)
    export.add_argument(
        "--data", required=True, help="to find ranges from: a .npz or .safetensors file of inputs, or module:name of a "
        "DataModule, whose training data are taken, or loader",
    )  # fmt: skip
    export.add_argument("--plan", default="W8A8", help="a YAML file of bits, or W8A8, W6A8, W4A8, W4A4 (default: W8A8)")
    export.add_argument("-o", "--output", required=True, metavar="FILE", help="the .onnx file to write")
    export.add_argument("--limit", type=int, default=512, help="inputs to find ranges from (default: 512)")
    export.add_argument("--force", action="store_true", help="overwrite an existing file")
    export.set_defaults(command=_export)


def _add_attack_command(commands: _Commands[argparse.ArgumentParser]) -> None:
    attack = commands.add_parser(
        "attack",
        help="say what the worst input costs a ready network",
        description="Craft inputs in [0, 1] that burn energy, and trace what they and natural ones cost.",
    )
    _add_weights(attack)
    attack.add_argument(
        "--data", required=True, help="a .npz or .safetensors file of inputs, or module:name of a DataModule or loader"
    )
    attack.add_argument("--accelerator", default="eyeriss_like", help="a name from `effnn hw`, or a YAML file")
    attack.add_argument(
        "--attacks", nargs="+", default=["random", "lbfgs", "pgd", "genetic"], metavar="NAME",
        help="of random, lbfgs, pgd, genetic (default: all)",
    )  # fmt: skip
    attack.add_argument("--eps", default="8/255", help="largest change of a number, or none (default: 8/255)")
    attack.add_argument("--steps", type=int, default=40, help="of each attack (default: 40)")
    attack.add_argument("--limit", type=int, default=16, help="inputs to attack (default: 16)")
    attack.add_argument("--seed", type=int, default=0)
    attack.add_argument("--csv", metavar="FILE", help="write one row a kind of inputs")
    attack.add_argument("--plot", metavar="FILE", help="draw where the extra energy goes (.png, .svg or .pdf)")
    attack.set_defaults(command=_attack)


def _ls(options: argparse.Namespace) -> None:
    recipes.list_recipes(_console())


def _cp(options: argparse.Namespace) -> None:
    target = recipes.copy_recipe(options.name, options.destination, force=options.force)
    print(f"copied to {target}; run it with: effnn run {target}", file=_said_beside(options.destination))


def _run(options: argparse.Namespace) -> int:
    recipe = recipes.get_recipe(options.recipe)
    from lightning_effnn.cli.run import run_recipe

    return run_recipe(recipe, options.overrides)


def _sweep(options: argparse.Namespace) -> int:
    recipe = recipes.get_recipe(options.recipe)
    from pathlib import Path

    from lightning_effnn.cli.sweep import Sweep, parse_grid, run_sweep

    grid, folder = parse_grid(options.param), Path(options.folder)
    sweep = Sweep(recipe, grid, tuple(f"--{text}" for text in options.set), options.metric, options.mode, folder)
    return run_sweep(sweep, options.engine, options.at_once, _console())


def _hw(options: argparse.Namespace) -> None:
    from lightning_effnn.cli.hw import list_accelerators

    list_accelerators(options.accelerators, _console())


def _profile(options: argparse.Namespace) -> None:
    from lightning_effnn.cli.profile import profile

    profile(
        options.target,
        inputs=options.input,
        accelerator=options.accelerator,
        console=_console(options.csv, options.plot),
        batch_size=options.batch_size,
        batch_dim=options.batch_dim,
        inferences=options.inferences,
        dtype=options.dtype,
        meta=options.meta,
        check=options.check_batches,
        depth=options.depth,
        csv=options.csv,
        plot=options.plot,
    )


def _inspect(options: argparse.Namespace) -> None:
    from lightning_effnn.cli.artifacts import inspect

    inspect(options.file, console=_console(options.plot), plot=options.plot)


def _decompress(options: argparse.Namespace) -> None:
    from lightning_effnn.cli.artifacts import decompress

    print(decompress(options.file, options.output, force=options.force), file=_said_beside(options.output))


def _compress(options: argparse.Namespace) -> None:
    from lightning_effnn.cli.compress import compress

    compress(
        options.checkpoint,
        model=options.model,
        network=options.network,
        output=options.output,
        bits=options.bits,
        sparsity=options.sparsity,
        other=options.other,
        force=options.force,
        console=_console(options.output),
    )


def _export(options: argparse.Namespace) -> None:
    from lightning_effnn.cli.export import export

    export(
        options.checkpoint,
        model=options.model,
        network=options.network,
        data=options.data,
        plan=options.plan,
        output=options.output,
        limit=options.limit,
        force=options.force,
        console=_console(options.output),
    )


def _attack(options: argparse.Namespace) -> None:
    from lightning_effnn.cli.attack import attack

    attack(
        options.checkpoint,
        model=options.model,
        network=options.network,
        data=options.data,
        accelerator=options.accelerator,
        attacks=options.attacks,
        eps=options.eps,
        steps=options.steps,
        limit=options.limit,
        seed=options.seed,
        csv=options.csv,
        plot=options.plot,
        console=_console(options.csv, options.plot),
    )


def _console(*outputs: str | None) -> Console:
    """A console for tables: as wide as the terminal, wide enough in a pipe or a file."""
    file = _said_beside(*outputs)
    return Console(file=file) if file.isatty() else Console(file=file, width=120)


def _said_beside(*outputs: str | None) -> TextIO:
    """Where messages go: not into an output that is asked for on standard output."""
    return sys.stderr if any(output and descriptor(output) == 1 for output in outputs) else sys.stdout


def _make_working_folder_importable() -> None:
    """Let recipes and `effnn profile` name the user's own modules, as `python file.py` would."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
