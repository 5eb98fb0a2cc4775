"""``python -m fastgru``."""

import sys

from .cli import main

sys.exit(main())
