"""The command line: a command a stage, in the order in which data flows.

Each command is a thin layer over one typed function; the function is imported when its command
runs, so that `gapinit --help` and scoring never pay for torch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from gapinit.errors import GapinitError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Gap-Init: at rank 1, which direction should LoRA start from?",
)
data_app = typer.Typer(no_args_is_help=True, help="Make, read and check datasets.")
score_app = typer.Typer(no_args_is_help=True, help="Score predictions.")
app.add_typer(data_app, name="data")
app.add_typer(score_app, name="score")

Output = Annotated[Path, typer.Option(help="What is written, whole or not at all.")]
Backbone = Annotated[Path, typer.Option(help="save_pretrained folder of the backbone.")]
Manifest = Annotated[Path, typer.Option(help="manifest.json of `gapinit data prepare`.")]
Split = Annotated[str, typer.Option(help="Split of the dataset.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:0, ... or auto: a GPU if there is one.")]


@app.callback()
def _options(
    log_file: Annotated[
        Path | None, typer.Option(help="Also write everything that goes to standard error here.")
    ] = None,
) -> None:
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        sys.stderr = _Tee(sys.stderr, log_file.open("w", encoding="utf-8", buffering=1))


class _Tee:
    """A standard error that is kept in a file as well."""

    def __init__(self, terminal: TextIO, file: TextIO) -> None:
        self._terminal, self._file = terminal, file

    def write(self, text: str) -> int:
        self._file.write(text)
        return self._terminal.write(text)

    def isatty(self) -> bool:
        """No terminal: a bar's control codes would fill the file, and jobs run side by side."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._terminal, name)


@data_app.command("prepare")
def data_prepare(
    dataset: Annotated[Path, typer.Option(help="Dataset file, config/datasets/*.yaml.")],
    output: Output,
    data_root: Annotated[Path | None, typer.Option(help="Folder of a local dataset.")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Its annotation file or folder, if not <root>/annotations.")
    ] = None,
) -> None:
    """Generate or read a dataset, check all of it and write its manifest."""
    from gapinit.data.dataset import prepare_dataset

    prepare_dataset(dataset, output, data_root=data_root, annotations=annotations)


@app.command()
def backbone(
    settings: Annotated[Path, typer.Option(help="Backbone file, config/backbones/*.yaml.")],
    data: Annotated[Path, typer.Option(help="Folder of the pretraining dataset.")],
    output: Output,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Make a backbone's save_pretrained folder."""
    from gapinit.backbones import make_backbone

    make_backbone(settings, data, output, threads)


@app.command()
def states(
    backbone: Backbone,
    manifest: Manifest,
    output: Output,
    pairs: Annotated[int, typer.Option(help="Calibration pairs to draw.", min=2)],
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    split: Split = "train",
    pooling: Annotated[str, typer.Option(help="mean or last.")] = "mean",
    context: Annotated[
        str, typer.Option(help="joint: one pass over image and caption; separate: text alone.")
    ] = "joint",
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    max_caption_tokens: Annotated[int, typer.Option(min=2)] = 32,
    device: Device = "auto",
) -> None:
    """Write pooled vision and text hidden states of every layer (HDF5)."""
    from gapinit.states import extract_states

    extract_states(
        backbone,
        manifest,
        output,
        pairs=pairs,
        seed=seed,
        split=split,
        pooling=_choice(pooling, "pooling", ("mean", "last")),
        context=_choice(context, "context", ("joint", "separate")),
        batch_size=batch_size,
        max_caption_tokens=max_caption_tokens,
        device=_device(device),
    )


@app.command()
def gap(
    states: Annotated[
        list[Path], typer.Option(help="States file; several are mixed, a pair of each in turn.")
    ],
    output: Output,
    size: Annotated[int, typer.Option(help="Calibration pairs, a prefix of the states.", min=2)],
    heldout: Annotated[
        int, typer.Option(help="Pairs after those, to measure the gap again.", min=0)
    ] = 0,
    neighbours: Annotated[int, typer.Option(help="k of SPOT-Gap.", min=1)] = 10,
    alpha_semantic: float = 1.0,
    alpha_geometric: float = 1.0,
    smoothing: Annotated[str, typer.Option(help="spot or mean.")] = "spot",
) -> None:
    """Estimate each layer's gap vector, SPOT-Gap score, spectrum and cone (HDF5)."""
    from gapinit.gap_file import estimate_gap_file

    estimate_gap_file(
        states,
        output,
        size=size,
        heldout=heldout,
        neighbours=neighbours,
        alpha_semantic=alpha_semantic,
        alpha_geometric=alpha_geometric,
        smoothing=_choice(smoothing, "smoothing", ("spot", "mean")),
    )


@app.command()
def layers(
    gap: Annotated[Path, typer.Option(help="Gap file.")],
    output: Output,
    num_layers: Annotated[int, typer.Option(help="Layers to adapt.", min=1)],
    exclude_bottom: Annotated[
        int, typer.Option(help="Bottom layers that GG-Safe never takes.", min=0)
    ] = 0,
) -> None:
    """Choose the adapted layers: naive (last k), gg-safe (top k by SPOT-Gap) and all (JSON)."""
    from gapinit.layers import write_layers

    write_layers(gap, output, num_layers=num_layers, exclude_bottom=exclude_bottom)


@app.command()
def trunk(
    backbone: Backbone,
    manifest: Manifest,
    layers: Annotated[Path, typer.Option(help="Layer choice, of `gapinit layers`.")],
    strategy: Annotated[str, typer.Option(help="naive, gg-safe or all.")],
    output: Output,
    split: Split = "train",
    max_caption_tokens: Annotated[int, typer.Option(min=2)] = 32,
    device: Device = "auto",
) -> None:
    """Compute the frozen part's states on the training set, once for all runs (HDF5)."""
    from gapinit.trunk import extract_trunk

    extract_trunk(
        backbone,
        manifest,
        layers,
        _choice(strategy, "strategy", ("naive", "gg-safe", "all")),
        output,
        split=split,
        max_caption_tokens=max_caption_tokens,
        device=_device(device),
    )


@app.command()
def train(
    run: Annotated[str, typer.Option(help="The run's path, which spells its factors.")],
    backbone: Backbone,
    trunk: Annotated[Path, typer.Option(help="Trunk of the run's layers.")],
    layers: Annotated[Path, typer.Option(help="Layer choice, of `gapinit layers`.")],
    gap: Annotated[Path, typer.Option(help="Gap file: direction, and what B is compared with.")],
    output: Output,
    alpha_per_rank: float = 2.0,
    dropout: float = 0.05,
    learning_rate: float = 2e-4,
    scheduler: str = "cosine",
    warmup_ratio: float = 0.0,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    batch_size: int = 32,
    gradient_accumulation: int = 1,
    group_by_length: Annotated[
        bool, typer.Option(help="Batches of captions of like length: less padding.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Train one run on the trunk: adapter folder, step log and run.json."""
    from gapinit.config import Lora, Training
    from gapinit.runs import Run
    from gapinit.settings import check_settings

    chosen = Run.parse(run)
    origin = "gapinit train"
    recipe = {
        "learning_rate": learning_rate,
        "scheduler": scheduler,
        "warmup_ratio": warmup_ratio,
        "weight_decay": weight_decay,
        "max_grad_norm": max_grad_norm,
        "batch_size": batch_size,
        "gradient_accumulation": gradient_accumulation,
        "group_by_length": group_by_length,
        "epochs": chosen.epochs,
    }
    checked = check_settings(recipe, Training, origin)
    lora = check_settings({"alpha_per_rank": alpha_per_rank, "dropout": dropout}, Lora, origin)

    from gapinit.train import train_run

    train_run(
        chosen,
        backbone,
        trunk,
        layers,
        gap,
        output,
        recipe=checked,
        lora=lora,
        device=_device(device),
    )


@app.command()
def features(
    backbone: Backbone,
    manifest: Manifest,
    output: Output,
    split: Split = "test",
    device: Device = "auto",
) -> None:
    """Compute a split's image features once for all runs (HDF5)."""
    from gapinit.predict import extract_features

    extract_features(backbone, manifest, output, split=split, device=_device(device))


@app.command()
def predict(
    backbone: Backbone,
    features: Annotated[Path, typer.Option(help="Image features, of `gapinit features`.")],
    output: Output,
    adapter: Annotated[
        Path | None, typer.Option(help="PEFT adapter folder; none: zero-shot.")
    ] = None,
    num_beams: Annotated[int, typer.Option(help="1: greedy.", min=1)] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    device: Device = "auto",
) -> None:
    """Caption a split and write COCO's result format."""
    from gapinit.predict import predict_captions

    predict_captions(
        backbone,
        features,
        adapter,
        output,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        device=_device(device),
    )


@score_app.command("captions")
def score_captions_command(
    references: Annotated[Path, typer.Option(help="COCO captions JSON or Karpathy JSON.")],
    predictions: Annotated[Path, typer.Option(help="COCO result format.")],
    output: Output,
    metrics: Annotated[
        str, typer.Option(help="Some of cider,bleu,meteor,rouge.")
    ] = "cider,bleu,meteor,rouge",
) -> None:
    """Score captions by CIDEr, BLEU, METEOR and ROUGE-L, in percent."""
    from gapinit.metrics.captions import score_captions

    names = [name.strip() for name in metrics.split(",") if name.strip()]
    score_captions(references, predictions, output, metrics=names)


Configuration = Annotated[Path, typer.Option(help="Checked configuration, JSON.")]
Evaluations = Annotated[Path, typer.Option(help="Folder of all runs' scores.")]
Runs = Annotated[Path, typer.Option(help="Folder of all runs.")]
Experiments = Annotated[list[Path], typer.Option(help="Experiment file; may be repeated.")]


@app.command()
def configuration(
    content: Annotated[str, typer.Option(help="The configuration as JSON.")], output: Output
) -> None:
    """Check a configuration and write it for the commands that multiply out experiments."""
    import json

    from gapinit.artifacts import write_json
    from gapinit.config import Config
    from gapinit.settings import check_settings

    checked = check_settings(json.loads(content), Config, "--content")
    write_json(output, checked.model_dump(mode="json", by_alias=True))


@app.command()
def table(
    experiment: Annotated[Path, typer.Option(help="Experiment file, config/experiments/*.yaml.")],
    configuration: Configuration,
    evaluations: Evaluations,
    runs: Runs,
    published: Annotated[Path, typer.Option(help="Folder of published numbers.")],
    output: Output,
) -> None:
    """Write one table: published and measured numbers side by side (CSV, Markdown, LaTeX)."""
    from gapinit.tables import make_table

    make_table(experiment, _config(configuration), evaluations, runs, published, output)


@app.command()
def runs(
    experiment: Experiments,
    configuration: Configuration,
    evaluations: Evaluations,
    runs: Runs,
    output: Output,
) -> None:
    """Write every run, dataset and metric as one tidy table (CSV)."""
    from gapinit.tables import tidy_runs

    tidy_runs(experiment, _config(configuration), evaluations, runs, output)


@app.command()
def claims(
    experiment: Experiments, configuration: Configuration, evaluations: Evaluations, output: Output
) -> None:
    """Write a verdict on every claim of the experiments (CSV)."""
    from gapinit.claims import check_claims

    check_claims(experiment, _config(configuration), evaluations, output)


@app.command()
def figure(
    name: Annotated[str, typer.Argument(help="Module of gapinit.figures.")],
    output: Annotated[Path, typer.Option(help="Stem of the PDF, PNG, SVG and CSV written.")],
    table: Annotated[Path | None, typer.Option(help="Table, CSV.")] = None,
    states: Annotated[Path | None, typer.Option(help="States file.")] = None,
    gap: Annotated[Path | None, typer.Option(help="Gap file.")] = None,
    run: Annotated[list[Path] | None, typer.Option(help="A run's run.json; may repeat.")] = None,
) -> None:
    """Draw one figure (PDF, PNG, SVG) and write the numbers drawn (CSV)."""
    from importlib import import_module

    _choice(name, "figure", FIGURES)
    draw = import_module(f"gapinit.figures.{name}").draw
    given = {"table": table, "states": states, "gap": gap, "runs": run}
    draw(**{key: value for key, value in given.items() if value is not None}, output=output)


@app.command()
def report(
    table: Annotated[list[Path], typer.Option(help="Table, CSV; may repeat.")],
    experiment: Experiments,
    configuration: Configuration,
    claims: Annotated[Path, typer.Option(help="Verdicts, CSV.")],
    runs_table: Annotated[Path, typer.Option(help="Tidy table of all runs, CSV.")],
    evaluations: Evaluations,
    runs: Runs,
    manifest: Manifest,
    output: Output,
    layers: Annotated[Path | None, typer.Option(help="Layer choice.")] = None,
    figure: Annotated[list[Path] | None, typer.Option(help="Figure, SVG; may repeat.")] = None,
) -> None:
    """Write the report, one self-contained HTML page."""
    from gapinit.report import make_report

    config = _config(configuration)
    make_report(
        title=f"gapinit: {config.name}",
        config=config,
        tables=table,
        claims=claims,
        runs_table=runs_table,
        figures=figure or [],
        evaluations=evaluations,
        runs=runs,
        manifest=manifest,
        predictions_dataset=config.datasets.in_domain,
        output=output,
        commit=None,
        experiments=experiment,
        layers=layers,
    )


@app.command()
def summary(
    results: Annotated[Path, typer.Argument(help="Folder of one configuration's results.")],
) -> None:
    """Print where the report is, the headline table and the verdicts."""
    from gapinit.summary import print_summary

    print_summary(results)


FIGURES = ("figure1a", "figure1c", "figure2", "figure3", "figure4", "figure5", "curves")


def _config(path: Path) -> Any:
    from gapinit.artifacts import read_json
    from gapinit.config import Config
    from gapinit.settings import check_settings

    return check_settings(read_json(path), Config, str(path))


def _choice(value: str, name: str, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise GapinitError(
            f"--{name}: unknown value '{value}', expected one of: {', '.join(known)}"
        )
    return value


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    """Run the command line; a user's mistake is one message and exit status 1."""
    try:
        app()
    except GapinitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
