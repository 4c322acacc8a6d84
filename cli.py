"""The command `collectionlora`. What needs torch is imported by the command that needs it: --help is instant.

Exit codes: 0 done, 2 bad input or configuration, 3 the run diverged, 130 cancelled, 1 anything unexpected.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .training.errors import Cancelled, DivergedError

if TYPE_CHECKING:
    from .training.hosts.pocket import PocketHost
    from .training.hosts.qwen import QwenEditHost
    from .training.run_config import Run
    from .training.workers import Workers

OK, UNEXPECTED, BAD_INPUT, DIVERGED, CANCELLED = 0, 1, 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. Only usage errors leave by SystemExit, with code 2."""
    args = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):  # a console or file that knows few letters
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code: int = args.command(args)
    except KeyboardInterrupt:
        return _fail("cancelled", CANCELLED)
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        return _fail(*_explained(error))
    return code


class _Broken(Exception):
    """A run that broke off; the command that goes on. The cause says why."""


def _explained(error: BaseException) -> tuple[str, int]:
    """One line for a person, and the exit code."""
    import torch

    from .training.captions import CaptionError

    text = " ".join(str(error).split())
    if isinstance(error, _Broken) and error.__cause__ is not None:
        why, code = _explained(error.__cause__)
        return f"{why}; what was trained is kept, go on with: {text}", code
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory; `collectionlora plan CONFIG.toml --gpu GB` names settings that fit", BAD_INPUT
    if isinstance(error, Cancelled):
        return text, CANCELLED
    if isinstance(error, DivergedError):
        return text, DIVERGED
    # Whatever reads a user's file raises a ValueError of its own kind, and the system an OSError.
    if isinstance(error, ValueError | OSError | CaptionError):
        return text, BAD_INPUT
    return f"unexpected {type(error).__name__}: {text}; run again with --debug", UNEXPECTED


def _fail(text: str, code: int) -> int:
    print(f"collectionlora: {text}", file=sys.stderr)
    return code


def _named(text: str) -> tuple[str, Path]:
    name, _, file = text.partition("=")
    if not (name.strip() and file):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE")
    return name.strip(), Path(file)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show where an error came from")
    model = argparse.ArgumentParser(add_help=False)
    what = "a Qwen-Image-Edit folder, or pocket weights; by default the shipped ones"
    model.add_argument("--base", type=Path, metavar="DIR", help=what)
    pocket = argparse.ArgumentParser(add_help=False)
    pocket.add_argument("--base", type=Path, metavar="DIR", help="pocket weights (the shipped ones)")
    parser = argparse.ArgumentParser(
        prog="collectionlora", description="Many effect LoRAs in one few-step LoRA."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, what: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(name, parents=[common, *parents], help=what, description=what)

    one = add("distill", "distil the teachers of a configuration file into a collection")
    one.add_argument("config", type=Path, metavar="CONFIG.toml")
    one.add_argument("--resume", action="store_true", help="go on from the last saved state")
    one.add_argument("--cycles", type=int, metavar="N", help="length of the run instead of the file's")
    faster = "the pocket in bfloat16: over a third faster on a processor that has it; other bases always are"
    one.add_argument("--bfloat16", action="store_true", help=faster)
    one.add_argument(
        "--compile",
        action="store_true",
        help="faster after minutes of compiling; needs a C++ compiler, and has not been tried on a GPU",
    )
    one.set_defaults(command=_distill)

    one = add("plan", "predict memory, hours and disk of a run on a card, and the fastest settings that fit")
    one.add_argument("config", type=Path, nargs="?", metavar="CONFIG.toml", help="default: the paper's model")
    one.add_argument("--gpu", type=int, required=True, metavar="GB", help="of 16, 24, 32, 48 or 80")
    one.add_argument(
        "--gpus", type=int, default=1, metavar="N", help="so many of it, one torchrun process each (1)"
    )
    one.add_argument("--preset", metavar="NAME", help="numbers of a preset, without a file (default)")
    one.add_argument("--effects", type=int, metavar="N", help="effects, without a file (50)")
    one.add_argument("--pictures", type=int, metavar="N", help="of each effect, without a file (20)")
    one.add_argument("--general", type=int, metavar="N", help="samples of the general stream, likewise (0)")
    one.add_argument("--size", type=int, metavar="PIXELS", help="long side instead of the file's (1024)")
    one.add_argument("--json", action="store_true", help="all of it, for programs")
    one.set_defaults(command=_plan)

    one = add("sample", "apply an effect of a collection to a picture", model)
    one.add_argument("collection", type=Path, metavar="COLLECTION")
    one.add_argument("--image", type=Path, required=True, metavar="FILE")
    one.add_argument("--effect", required=True, metavar="NAME", help="`collectionlora inspect` lists them")
    one.add_argument("--then", metavar="NAME", help="a second effect on top, in the same steps")
    one.add_argument("--size", type=int, metavar="PIXELS", help="long side; by default that of the training")
    one.add_argument("--steps", type=int, metavar="N", help="evaluations; by default and at most the file's")
    one.add_argument("--seed", type=int, default=0, metavar="N")
    one.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .png, .webp or .jpg to write")
    one.set_defaults(command=_sample)

    one = add(
        "evaluate", "judge a pocket collection beside its teachers, the truth, their sum and merges", pocket
    )
    one.add_argument(
        "collection", type=Path, nargs="?", metavar="COLLECTION", help="default: the one among the weights"
    )
    one.add_argument("--images", type=int, default=32, metavar="N", help="test pictures an effect (32)")
    more = "another collection as a row of the table; may be given more than once"
    one.add_argument("--beside", type=_named, action="append", default=[], metavar="NAME=FILE", help=more)
    one.add_argument("--out", type=Path, default=Path("out/evaluate"), metavar="DIR", help="(out/evaluate)")
    one.set_defaults(command=_evaluate)

    one = add("inspect", "say what is in a LoRA or collection")
    one.add_argument("file", type=Path, metavar="FILE")
    one.add_argument("--json", action="store_true", help="all of it, for programs")
    one.set_defaults(command=_inspect)

    one = add("convert", "write a LoRA or collection in another program's layout, values unchanged")
    one.add_argument("source", type=Path, metavar="SRC")
    one.add_argument("target", type=Path, metavar="DST", help="a .safetensors file; for peft a folder")
    one.add_argument("--layout", choices=("comfy", "peft", "kohya"), required=True)
    one.set_defaults(command=_convert)

    one = add(
        "demo", "distil four pocket effects, then judge the shipped collection; some ten minutes", pocket
    )
    one.add_argument("--image", type=Path, metavar="FILE", help="a picture of yours, for a sheet of its own")
    one.add_argument("--cycles", type=int, metavar="N", help="length of the distillation")
    one.add_argument("--out", type=Path, default=Path("out/demo"), metavar="DIR", help="(out/demo)")
    one.set_defaults(command=_demo)
    return parser


def _host(
    folder: Path | None,
    pocket_only: bool = False,
    long_side: int = 1024,
    base_dtype: str = "bf16",
    offload: bool | int = False,
    checkpointing: str = "full",
    bfloat16: bool = False,
    compiled: bool = False,
) -> PocketHost | QwenEditHost:
    """The base of a folder, by default the pocket's; with it what every computing command needs."""
    if sys.platform == "linux":  # or what one length of prompts leaves would not do for another
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    import torch

    try:
        from .pocket import WEIGHTS
        from .training.hosts.pocket import PocketHost
    except ModuleNotFoundError as error:
        remedy = "pip install '.[diffusers,pocket]' in the folder of CollectionLoRA"
        raise ValueError(f"{(error.name or '').partition('.')[0]} is missing: {remedy}") from error
    # Moments near zero become denormal numbers, with which a CPU is five times slower.
    torch.set_flush_denormal(True)
    if "OMP_NUM_THREADS" not in os.environ:  # torch alone takes half of the virtual cores
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        torch.set_num_threads(len(cores))
    # torchrun gives each of its processes a device of its own
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    if folder is None or not (folder / "model_index.json").is_file():
        return PocketHost(folder or WEIGHTS, device, base_dtype, offload, bfloat16, compiled)
    if pocket_only:
        raise ValueError(f"{folder}: only pocket bases can be judged: the truth of their effects is known")
    from .training.hosts.qwen import QwenEditHost

    return QwenEditHost(
        folder,
        device,
        base_dtype=base_dtype,
        offload=offload,
        long_side=long_side,
        checkpointing=checkpointing,
        compiled=compiled,
    )


def _distill(args: argparse.Namespace) -> int:
    from .training.config import ConfigError
    from .training.run_config import read_run
    from .training.workers import Workers

    run = read_run(args.config, args.cycles)
    if run.checkpoint.exists() and not args.resume:
        remedy = "go on with --resume, or delete it to start again"
        raise ConfigError(f"{run.checkpoint} holds the state of an earlier run; {remedy}")
    with Workers.joined() as workers:
        return _distil_among(workers, run, args)


def _distil_among(workers: Workers, run: Run, args: argparse.Namespace) -> int:
    from dataclasses import replace

    from .console import Console, distil
    from .training.checkpoint import CheckpointError
    from .training.config import ConfigError
    from .training.speed import bfloat16_slowdown

    if run.shard and args.compile:
        raise ConfigError(f"{args.config}: shard = true has not been tried with --compile; leave it out")
    if run.shard and workers.count == 1:
        raise ConfigError(
            f"{args.config}: shard = true splits the base over several processes; start them with "
            "torchrun --nproc-per-node N -m collectionlora distill ..."
        )
    run.require_base()
    host = _host(
        None if run.base == "pocket" else Path(run.base),
        long_side=run.long_side,
        base_dtype=run.base_dtype,
        offload=run.offload,
        checkpointing=run.checkpointing,
        bfloat16=args.bfloat16,
        compiled=args.compile,
    )
    if run.shard:
        workers = replace(workers, pace=host.shard())
    with Console(silent=not workers.leads) as console:
        if args.bfloat16 and (slowdown := bfloat16_slowdown(host.device)) > 1:
            console.say(f"This processor is {slowdown:.0f} times slower in bfloat16: leave --bfloat16 out")
        try:
            report = distil(run, host, console, args.resume, workers)
        except Exception as error:
            again = ["collectionlora distill", str(args.config)]
            again += [] if args.cycles is None else ["--cycles", str(args.cycles)]
            again += [f"--{name}" for name in ("bfloat16", "compile") if getattr(args, name)]
            again += ["--resume"] if run.checkpoint.exists() else []
            if isinstance(error, Cancelled | DivergedError):
                then = "with these lowered" if isinstance(error, DivergedError) else "go on with"
                raise type(error)(f"{error}; {then}: {' '.join(again)}") from error
            if run.checkpoint.exists() and not isinstance(error, CheckpointError):
                raise _Broken(" ".join(again)) from error
            raise
        if not workers.leads:
            return OK
        done = f"{len(report['prompts'])} effects after {report['training']['cycles']} cycles"
        console.say(f"{done}: {run.collection}, {run.output / 'report.json'}")
    return OK


def _check_size(size: int | None) -> None:
    if size is not None and not 64 <= size <= 4096:
        raise ValueError(f"--size = {size} must be a whole number from 64 to 4096")


def _plan(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from .training.planning.cards import card
    from .training.planning.jobs import job_of, job_of_preset
    from .training.planning.plan import plan, to_json, verdict, words
    from .training.run_config import read_run

    if args.gpus < 1:
        raise ValueError(f"--gpus = {args.gpus} must be at least 1")
    for name, least in (("effects", 1), ("pictures", 1), ("general", 0), ("preset", None)):
        value = getattr(args, name)
        if args.config and value is not None:
            raise ValueError(f"--{name}: {args.config} says that already; leave one of them out")
        if least is not None and value is not None and value < least:
            raise ValueError(f"--{name} = {value} must be at least {least}")
    _check_size(args.size)
    if args.config:
        job = job_of(read_run(args.config))
    else:
        job = job_of_preset(
            args.preset or "default", args.effects or 50, args.pictures or 20, args.general or 0
        )
    job = replace(job, devices=args.gpus, side=args.size or job.side)
    made = plan(job, card(args.gpu))
    print(json.dumps(to_json(made), indent=1) if args.json else f"{words(made)}\n{verdict(made)}".rstrip())
    return OK


def _sample(args: argparse.Namespace) -> int:
    from PIL import Image

    from .collection.atomic import atomic_write
    from .collection.file import read_catalogue
    from .collection.layouts import read_lora
    from .pocket import NAME
    from .training.flow import fewer_sigmas
    from .training.lora import linear_shapes
    from .training.pictures import to_pil
    from .training.prompting import COMPOSITION, SHORT_COMPOSITION, compose
    from .training.randomness import generator
    from .training.sampling import apply_collection

    catalogue = read_catalogue(args.collection)
    prompts = [catalogue[name].prompt for name in (args.effect, args.then) if name]
    kind = Image.registered_extensions().get(args.out.suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(f"{args.out}: no picture format of that name; end it in .png, .webp or .jpg")
    size = catalogue.long_side if args.size is None else args.size
    _check_size(size)
    sigmas = catalogue.sigmas if args.steps is None else fewer_sigmas(catalogue.sigmas, args.steps)
    host = _host(args.base, long_side=size)
    shapes = linear_shapes(host.transformer)
    if not catalogue.fits(shapes):
        raise ValueError(
            f"{args.collection} was distilled on {catalogue.base.get('name', 'another base')}, not on this "
            f"{host.name}; name the folder of that base with --base"
        )
    weights = read_lora(args.collection, shapes)
    prompt = prompts[0]
    if args.then:
        prompt = compose(*prompts, SHORT_COMPOSITION if host.name == NAME else COMPOSITION)
    image = host.read_image(args.image)
    draws = [generator(args.seed, "sample", args.effect)]
    result = apply_collection(host, weights, [prompt], image[None], draws, sigmas)
    with atomic_write(args.out) as temporary:
        to_pil(result[0]).save(temporary, kind)
    print(f"{args.out}: {prompt} ({len(sigmas) - 1} evaluations)")
    return OK


def _evaluate(args: argparse.Namespace) -> int:
    from .console import Console
    from .pocket import WEIGHTS
    from .pocket.report import full_report

    folder = args.base or WEIGHTS
    host = _host(args.base, pocket_only=True)
    collection = args.collection or folder / "collection.safetensors"
    with Console() as console:
        report, content = full_report(
            host, folder, collection, args.images, args.out, console.progress, dict(args.beside)
        )
        console.say(report.table())
        console.say(f"Judged on {report.images} pictures an effect. Report and sheets are in {args.out}.")
        for row, ratio in content["general"]["ratio"].items():
            span = f"{ratio['mean']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
            console.say(f"Error of {row} on general edits over the base's in 40 steps: {span}")
    return OK


def _inspect(args: argparse.Namespace) -> int:
    from .collection.inspect import describe, render

    description = describe(args.file)
    print(json.dumps(description, indent=1) if args.json else render(description))
    return OK


def _convert(args: argparse.Namespace) -> int:
    from .collection.inspect import convert

    convert(args.source, args.target, args.layout)
    print(f"{args.target}: {args.layout} layout")
    return OK


def _demo(args: argparse.Namespace) -> int:
    from .console import Console
    from .pocket import WEIGHTS
    from .pocket.demo import CYCLES, demo

    with Console() as console:
        cycles = CYCLES if args.cycles is None else args.cycles
        demo(_host(args.base, pocket_only=True), console, args.base or WEIGHTS, args.out, args.image, cycles)
    return OK
