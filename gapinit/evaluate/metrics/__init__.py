"""Scores of predictions against references. No torch, no pandas."""

CAPTION_METRICS = {
    "cider": ("CIDEr",),
    "bleu": ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"),
    "meteor": ("METEOR",),
    "rouge": ("ROUGE_L",),
}
"""Metrics of each caption scorer, by the official names."""
