"""Score a Keras model without Keras: python examples/score_keras.py [MODEL.keras]"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import fastgru

golden = Path(__file__).resolve().parent.parent / "tests" / "golden"
model = fastgru.load(sys.argv[1] if len(sys.argv) > 1 else golden / "keras_text_gru.keras")
model.summary()
if len(sys.argv) == 1:
    ids = np.random.default_rng(0).integers(0, 50, (3, 12))
    print(model.predict(ids))
