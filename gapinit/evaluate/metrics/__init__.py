"""Scores of predictions against their references. Nothing in here imports torch or pandas."""

CAPTION_METRICS = {
    "cider": ("CIDEr",),
    "bleu": ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"),
    "meteor": ("METEOR",),
    "rouge": ("ROUGE_L",),
}
"""What each scorer of captions measures, by the official names."""
