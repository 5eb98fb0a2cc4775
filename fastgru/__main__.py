"""The command ``fastgru``, and ``python -m fastgru``."""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run `cli.main`; 2 if the environment asks for what this build can't do, which the import of its core says."""
    try:
        from .cli import main as run
    except ImportError as error:
        if not str(error).startswith("FASTGRU_"):
            raise
        print(f"fastgru: {error}", file=sys.stderr)
        return 2
    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
