"""``fastgru info | convert | score | train | evaluate | diff | demo``: the command line."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import fastgru

from . import demo, formats, loading, nn, tables
from .convert import command as convert_command
from .convert.refusals import about
from .formats import FormatError, ModelFile
from .layers.base import Array, Shape
from .models import Model
from .models.onnx import OnnxModel
from .runs import command as runs_command

_ROWS = 1024
_PADDING = ("lengths", "mask")

_SCORE = """\
Score arrays with a Keras or ONNX model or a PyTorch GRU, a batch of rows at a time (an ONNX graph: all at once).

IN    .npy   one array, (N, ...)
      .npz   the model's inputs by name, and `lengths` or `mask` if steps are padding (NAME_lengths or NAME_mask of the
             input NAME, where there are several); a model of one input takes one array of any name
      .csv   a row a line: ids, or the features of step 1, of step 2, ... side by side; a first line without any
             number is a title and left out
OUT   .npy; .npz, which holds several outputs by name; or .csv, a row a line: (N, T, H) is flattened to T*H numbers

PyTorch GRUs  x is read batch first, whatever the GRU was trained with: (N, T, I), or (T, I) for one sequence (so a
      .csv is one sequence, a step a line). An .npz holds x, and may hold h0 (layers * directions, N, H) and
      lengths (N,); other arrays are not looked at. OUT is y (N, T, directions * H); an .npz holds h_n too, in the
      layout of h0. A GRUCell takes x (N, I) and gives h_n (N, H).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 an expected error, 2 wrong usage, 130 Ctrl-C."""
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except KeyboardInterrupt as error:
        print(f"\nfastgru: interrupted{error}", file=sys.stderr)
        return 130  # as shells have it
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        print(f"fastgru: {error.filename}: {what}" if error.filename else f"fastgru: {error}", file=sys.stderr)
    except (ValueError, TypeError, ImportError) as error:
        print(f"fastgru: {error}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastgru", description="Score and train GRUs on any CPU.")
    parser.add_argument("--version", action="version", version=f"fastgru {fastgru.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="what a model file holds")
    info.add_argument("file", metavar="FILE")
    info.add_argument("--config", metavar="JSON", help=convert_command.CONFIG_HELP)
    info.add_argument("--draft", metavar="JSON", help="write what Keras weights alone tell of their layers")
    info.set_defaults(run=_info)

    convert_command.add_parser(commands)

    score = commands.add_parser(
        "score",
        help="score arrays (.npy, .npz, .csv)",
        description=_SCORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    score.add_argument("model", metavar="MODEL")
    score.add_argument("input", metavar="IN", help="a .npy, .npz or .csv file")
    score.add_argument("output", metavar="OUT", help="the file to write: .npy, .npz or .csv")
    score.add_argument("--prefix", help="which GRU of a state_dict, e.g. encoder.rnn")
    score.add_argument("--config", metavar="JSON", help=convert_command.CONFIG_HELP)
    score.add_argument("--num-threads", type=_positive, help="threads to use")
    score.add_argument("--batch-size", type=_positive, default=_ROWS, help="rows at a time")
    score.add_argument("--quiet", action="store_true", help="no progress bar, no closing line")
    score.set_defaults(run=_score)

    runs_command.add_parsers(commands)

    compared = commands.add_parser("diff", help="compare two model files: tensors, outputs, and why they differ")
    compared.add_argument("a", metavar="A")
    compared.add_argument("b", metavar="B")
    compared.add_argument("--config", metavar="JSON", help=convert_command.CONFIG_HELP)
    compared.add_argument("--prefix", help="which GRU of a state_dict, e.g. encoder.rnn")
    compared.add_argument("--atol", type=float, default=0.0, help="what may differ by so much is called equal")
    compared.set_defaults(run=_diff)

    shown = commands.add_parser("demo", help="score models that Keras and PyTorch wrote, compare, time")
    shown.add_argument("--golden", metavar="FOLDER", help="the model files (default: tests/golden of the checkout)")
    shown.set_defaults(run=_demo)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


def _demo(arguments: argparse.Namespace) -> int:
    return demo.main([] if arguments.golden is None else ["--golden", arguments.golden])


def _diff(arguments: argparse.Namespace) -> int:
    """As diff(1): 0 equal, 1 different, 2 trouble."""
    from .convert.diff import diff

    try:
        found = diff(arguments.a, arguments.b, config=arguments.config, prefix=arguments.prefix, atol=arguments.atol)
    except (OSError, ValueError, TypeError) as error:
        print(f"fastgru: {error}", file=sys.stderr)
        return 2
    print("\n".join(found.lines()))
    return 0 if found.equal else 1


# -- info ----------------------------------------------------------------------------------


def _info(arguments: argparse.Namespace) -> int:
    if arguments.draft:
        return _draft(arguments)
    with about(arguments.file, *filter(None, [arguments.config])):
        file = formats.read(arguments.file, arguments.config)
        model = None if file.config is None else Model.from_model_file(file)
    version = f", written by version {file.version}" if file.version else ", version not recorded"
    if file.format == "fastgru-safetensors":  # what is recorded there is the framework's whose rules its layers follow
        version = f", layers as in Keras {file.version}" if file.version else ""
    print(f"{file.path}: {file.format}{version}")
    notes = file.notes
    if file.format == "keras-weights":
        notes += ("weights alone: --config gives their layers, --draft writes a config of them to fill in",)
    if model is None:
        _print_state_dict(file)
    else:
        _print_model(model)
        notes = model.notes
    for note in notes:
        print(f"note: {note}")
    return 0


def _draft(arguments: argparse.Namespace) -> int:
    """Write a config with "?" in it; a file that is there already may hold answers, and stays."""
    text = json.dumps(loading.draft_config(arguments.file), indent=2)
    with open(arguments.draft, "x", encoding="utf-8") as file:
        file.write(text + "\n")
    print(f'{arguments.draft}: fill in {text.count(chr(34) + "?" + chr(34))} "?", add the layers without weights, ')
    print(f"and give it with --config {arguments.draft}")
    return 0


def _print_model(model: Model) -> None:
    for end in model.inputs:
        print(f"input {end.name!r}: {end.describe()}")
    print(f"output {', '.join(map(repr, model.output_names))}")
    model.summary()
    for name, value in model.all_tensors().items():
        print(f"  {name} {value.shape} {value.dtype}")


def _print_state_dict(file: ModelFile) -> None:
    for prefix, what in sorted(loading.find_grus(file.tensors).items()):
        print(f"GRU at prefix {prefix!r}: {what}")
    for name, tensor in file.tensors.items():
        print(f"  {name} {tensor.shape} {tensor.dtype}")
    print(f"Parameters: {sum(t.size for t in file.tensors.values()):,}")


# -- score ---------------------------------------------------------------------------------


def _score(arguments: argparse.Namespace) -> int:
    tables.check_target(arguments.output)
    tables.check_apart(arguments.output, arguments.model, arguments.input)
    model = _load(arguments.model, arguments.prefix, arguments.config)
    if isinstance(model, Model):
        return _score_model(model, arguments)
    return _score_gru(model, arguments)


def _listed(outputs: Any) -> list[Array]:
    if isinstance(outputs, dict):
        return list(outputs.values())
    return outputs if isinstance(outputs, list) else [outputs]


def _load(path: str, prefix: str | None, config: str | None) -> Model | nn.GRU | nn.GRUCell:
    """As `fastgru.load`, whose errors speak of its argument; these speak of the option."""
    file = formats.read(path, config)
    if file.config is not None and prefix is not None:
        raise FormatError(f"{path}: a whole model takes no --prefix, found {prefix!r}")
    grus = loading.find_grus(file.tensors) if file.config is None and prefix is None else {}
    if len(grus) > 1:
        listed = ", ".join(f"{p!r}: {what}" for p, what in sorted(grus.items()))
        raise FormatError(f"{path}: expected one GRU, found {len(grus)}: {listed}; choose one with --prefix")
    return loading.from_file(file, prefix)


@contextmanager
def _about(path: str) -> Iterator[None]:
    """Errors about an array name the file that it came from."""
    try:
        yield
    except (ValueError, TypeError) as error:
        text = str(error)
        layout = "; h0 is (layers · directions, N, H)" if text.startswith("h0: ") else ""
        raise FormatError(text if text.startswith(path) else f"{path}: {text}{layout}") from error


def _score_model(model: Model, arguments: argparse.Namespace) -> int:
    table = tables.open_table(arguments.input)
    names, extra = _inputs_of(model, table, arguments.input)
    if isinstance(model, OnnxModel):
        return _score_graph(model, table, names, arguments)
    if isinstance(table, tables.NpzReader):
        table.take([*names, *(array for array, _, _ in extra)])
    keys = _distinct(model.output_names)

    def run(chunk: dict[str, Array]) -> dict[str, Array]:
        x = [chunk[name] for name in names]
        if isinstance(table, tables.CsvReader):
            x = [tables.unflatten(x[0], model.inputs[0].shape, arguments.input)]
        padding: dict[str, Any] = {}
        for array, what, end in extra:
            padding.setdefault(what, {e.name: None for e in model.inputs})[end] = chunk[array]
        y = model.predict(x[0] if len(x) == 1 else x, num_threads=arguments.num_threads, **padding)
        return y if isinstance(y, dict) else dict(zip(keys, _listed(y), strict=True))

    rows = max(1, table.rows) if model.one_batch else arguments.batch_size
    _score_chunks(run, table.chunks(rows), table.rows, arguments)
    return 0


def _score_graph(model: OnnxModel, table: tables.Reader, names: list[str], arguments: argparse.Namespace) -> int:
    """An ONNX graph: no axis is known to be rows, so every array goes in and comes out whole."""
    if isinstance(table, tables.NpzReader):
        x = [table.array(name) for name in names]
    else:
        x = [next(table.chunks(max(1, table.rows)))[""]]
        x = (
            [tables.unflatten(x[0], model.inputs[0].shape, arguments.input)]
            if isinstance(table, tables.CsvReader)
            else x
        )
    with _about(arguments.input):
        outputs = _listed(model.predict(x, num_threads=arguments.num_threads))
    keys = _distinct(model.output_names)
    if len(keys) > 1 and not arguments.output.lower().endswith(".npz"):
        raise FormatError(f"{arguments.output}: the model has the outputs {keys}; write them to a .npz file")
    with tables.writing(arguments.output) as writer:
        for key, value in zip(keys, outputs, strict=True):
            value = value.reshape(value.shape or (1,))
            writer.write({key: value}, len(value))
    _report(arguments, len(outputs[0].reshape(outputs[0].shape or (1,))), writer.shapes)
    return 0


def _score_chunks(
    run: Callable[[dict[str, Array]], dict[str, Array]],
    chunks: Iterator[dict[str, Array]],
    rows: int,
    arguments: argparse.Namespace,
) -> None:
    from tqdm import tqdm

    hidden = True if arguments.quiet else None  # None: hidden unless a person watches
    with (
        tables.writing(arguments.output) as writer,
        tqdm(total=rows, unit="row", disable=hidden) as bar,
    ):
        for chunk in chunks:
            with _about(arguments.input):
                outputs = run(chunk)
            writer.write(outputs, rows)
            bar.update(len(next(iter(outputs.values()))))
    _report(arguments, rows, writer.shapes)


def _report(arguments: argparse.Namespace, rows: int, shapes: dict[str, Shape]) -> None:
    if not arguments.quiet:
        several = len(shapes) > 1
        written = ", ".join(f"{name} {shape}" if several else str(shape) for name, shape in shapes.items())
        print(f"{rows} row{'s' * (rows != 1)} → {arguments.output} {written}", file=sys.stderr)


def _distinct(names: Sequence[str]) -> list[str]:
    if len(set(names)) == len(names):
        return list(names)
    return [f"{name}_{i}" for i, name in enumerate(names)]


def _inputs_of(model: Model, table: tables.Reader, path: str) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Which arrays of a file are the model's inputs, in its order, and which say the padding: (array, lengths or mask,
    input)."""
    ends = [end.name for end in model.inputs]
    names = list(table.names)
    if not isinstance(table, tables.NpzReader):
        if len(ends) > 1:
            raise FormatError(f"{path}: expected an .npz file with {ends}, found a single array")
        return names, []
    if len(names) == len(ends) == 1:
        return names, []
    extra = [(f"{end}_{what}", what, end) for what in _PADDING for end in ends]
    extra += [(what, what, ends[0]) for what in _PADDING]
    extra = [e for e in extra if e[0] in names and e[0] not in ends]
    if extra and (len(ends) > 1 and extra[-1][0] in _PADDING or isinstance(model, OnnxModel)):
        wanted = (
            "beside its inputs none" if isinstance(model, OnnxModel) else f"one of {[f'{e}_lengths' for e in ends]}"
        )
        raise FormatError(f"{path}: expected {wanted}, found {extra[-1][0]!r}; the model has the inputs {ends}")
    if all(end in names for end in ends):
        return ends, extra
    rest = [n for n in names if all(n != array for array, _, _ in extra)]
    numbered = rest == [f"arr_{i}" for i in range(len(ends))]  # numpy.savez without names
    if len(rest) == len(ends) and (len(ends) == 1 or numbered):
        return rest, extra
    wanted = f"the input {ends[0]!r}, or a single array" if len(ends) == 1 else f"the inputs {ends}"
    raise FormatError(f"{path}: expected an .npz file with {wanted}, found {names}")


def _score_gru(gru: nn.GRU | nn.GRUCell, arguments: argparse.Namespace) -> int:
    """A bare GRU on x (N, T, I) or one sequence (T, I); a cell on (N, I).

    An .npz may bring h0 and lengths and take h_n, in PyTorch's shapes: those are not row by row,
    so .npz is scored in one go, while .npy and .csv go in chunks.
    """
    threads = arguments.num_threads
    path = arguments.input
    cell = isinstance(gru, nn.GRUCell)
    if isinstance(gru, nn.GRU):
        gru.batch_first = True
    table = tables.open_table(path)
    if isinstance(table, tables.NpzReader) or arguments.output.lower().endswith(".npz"):
        given = _gru_arrays(path, table)
        x, h0, lengths = given["x"], given.get("h0"), given.get("lengths")
        with _about(path):
            if isinstance(gru, nn.GRUCell):
                outputs = {"h_n": gru(x, h0, num_threads=threads)}
            else:
                y, h_n = gru(x, h0, lengths, num_threads=threads)
                outputs = {"y": y, "h_n": h_n}
        if not arguments.output.lower().endswith(".npz"):
            outputs = dict([next(iter(outputs.items()))])
        with tables.writing(arguments.output) as writer:
            for name, value in outputs.items():
                writer.write({name: value}, len(value))
        _report(arguments, len(x), writer.shapes)
        return 0
    rank = len(table.shape)
    if rank not in ((2,) if cell else (2, 3)):
        expected = "(N, I)" if cell else "(N, T, I) or (T, I)"
        raise FormatError(f"{path}: expected {expected}, found {table.shape}")

    def run(chunk: dict[str, Array]) -> dict[str, Array]:
        x = chunk[""]
        if isinstance(gru, nn.GRUCell):
            return {"h_n": gru(x, num_threads=threads)}
        return {"y": gru(x, num_threads=threads)[0]}

    rows = max(1, table.rows) if rank == 2 and not cell else arguments.batch_size
    _score_chunks(run, table.chunks(rows), table.rows, arguments)
    return 0


def _gru_arrays(path: str, table: tables.Reader) -> dict[str, Array]:
    """x, and h0 and lengths where an .npz has them."""
    if not isinstance(table, tables.NpzReader):
        return {"x": next(table.chunks(max(1, table.rows)))[""]}
    names = [n for n in table.names if n not in ("h0", "lengths")] or list(table.names)
    if "x" not in names and len(names) != 1:
        raise FormatError(f"{path}: expected the array x (and h0, lengths), found {list(table.names)}")
    main = "x" if "x" in names else names[0]
    return {"x": table.array(main), **{n: table.array(n) for n in ("h0", "lengths") if n in table.names and n != main}}
