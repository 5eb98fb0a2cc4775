"""``fastgru convert``: its arguments, and what it prints."""

from __future__ import annotations

import argparse
import os

from .. import formats, tables
from ..formats import FormatError
from ..formats.replacing import replacing
from . import TARGETS, Mismatch, Report, convert

__all__ = ["CONFIG_HELP", "add_parser"]

CONFIG_HELP = "for Keras weights alone: the JSON of model.to_json(), or a .keras file"

_DESCRIPTION = """\
Write a model in another format. The suffix of DST says which, or --to:

{formats}

What a format can't express is refused, with the layer and the reason. A Keras model becomes weights by PyTorch's
names with --to pytorch, and the notes say which torch.nn modules take them. A state_dict that stays one keeps all its
tensors; --prefix takes one GRU out of it.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``fastgru``."""
    formats = "\n".join(f"  {name:14} {', '.join(t.suffixes):15} {t.title}" for name, t in TARGETS.items())
    parser = commands.add_parser(
        "convert",
        help="write a model in another format, and prove it",
        description=_DESCRIPTION.format(formats=formats),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("target", metavar="DST")
    parser.add_argument("--to", choices=TARGETS, help="the format, if the suffix does not say it")
    parser.add_argument("--prefix", help="which GRU of a state_dict, e.g. encoder.rnn")
    parser.add_argument("--config", metavar="JSON", help=CONFIG_HELP)
    parser.add_argument("--verify", action="store_true", help="read it back and compare, in the frameworks too")
    parser.add_argument("--report", metavar="OUT.json", help="write what was done and found as JSON")
    parser.add_argument("--opset", type=int, help="of an ONNX target: 17 (the default) or newer")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    tables.check_target(arguments.target)
    if arguments.report:
        tables.check_target(arguments.report)
        if os.path.realpath(arguments.report) == os.path.realpath(arguments.target):
            raise FormatError(f"{arguments.report}: --report: expected another file than the target")
        tables.check_apart(arguments.report, *filter(None, (arguments.source, arguments.config)))
        _check_data_files(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow, if it runs, greets on every stream
    try:
        report = convert(
            arguments.source,
            arguments.target,
            to=arguments.to,
            prefix=arguments.prefix,
            config=arguments.config,
            verify=arguments.verify,
            opset=arguments.opset,
        )
    except Mismatch as error:
        _save(error.report, arguments.report)
        raise
    _save(report, arguments.report)
    print("\n".join(report.lines()))
    return 0


def _check_data_files(arguments: argparse.Namespace) -> None:
    """The report replaces no external data of the source: asked before the target is written."""
    if os.path.exists(arguments.report):  # a new file is none of them
        config = arguments.config
        file = formats.read(arguments.source) if config is None else formats.read(arguments.source, config)
        tables.check_apart(arguments.report, *file.data_files)


def _save(report: Report, path: str | None) -> None:
    if path:
        with tables.told_of(path), replacing(path) as file:
            file.write(report.to_json().encode() + b"\n")
