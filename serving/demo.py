"""The two moods of `make serve-demo`, fitted on sentences that the package has."""

import sys
from pathlib import Path

import odesteer as ods
from odesteer.evaluation.demo import contrast
from odesteer.models.loading import load_model

folder = Path(sys.argv[1])
if not (folder / "cheerful").is_dir():
    model, tokenizer = load_model("smollm2", print)
    melancholy = ods.fit(model, tokenizer, contrast()[0], method="odesteer", layer=14)
    melancholy = melancholy.with_strength(ods.Angle(0.25))
    melancholy.save_pretrained(folder / "melancholy")
    (~melancholy).save_pretrained(folder / "cheerful")
