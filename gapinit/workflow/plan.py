"""The plan of a configuration: its runs, its tables, and the inputs of each run.

The Snakefile has one `Plan`, which gives its rules the gap, trunk and predictions that a run or a
table needs. No torch, since Snakemake imports this module each time it parses the Snakefile.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gapinit.config.configuration import Config, load_config
from gapinit.config.experiments import Experiment, load_experiment, table_rows
from gapinit.config.recipe import ELSEWHERE, NUMBERLESS
from gapinit.config.runs import Run, TableRow
from gapinit.config.versions import VERSIONS
from gapinit.config.yaml_files import read_yaml
from gapinit.data.dataset import dataset_kind, read_dataset_settings
from gapinit.data.folder import FolderSettings
from gapinit.data.manifest import Kind
from gapinit.data.references import reference_options
from gapinit.data.scenes.settings import ScenesSettings
from gapinit.errors import GapinitError
from gapinit.evaluate.metrics import CAPTION_METRICS
from gapinit.workflow.checks import Origin, check_plan, require_datasets


@dataclass(frozen=True)
class Plan:
    """A checked configuration with the runs of all its experiments."""

    config: Config
    folder: Path
    datasets: dict[str, ScenesSettings | FolderSettings]
    """The settings of every dataset that the configuration names."""
    experiments: dict[str, Experiment]
    rows: dict[str, list[TableRow]]

    @property
    def in_domain(self) -> str:
        """Return the dataset for fine-tuning."""
        return self.config.datasets.in_domain

    def runs(self, *tables: str) -> list[Run]:
        """Return the runs of the named tables, or of all tables, each once."""
        rows = [row for table in tables or self.rows for row in self.rows[table]]
        return list(dict.fromkeys(run for row in rows for run in row.runs))

    def trained(self, *tables: str) -> list[Run]:
        """Return the runs that train an adapter."""
        return [run for run in self.runs(*tables) if run.trained]

    def chunks(self) -> dict[tuple[int, ...], list[str]]:
        """Return the groups of seeds that one job trains, with the rows of each group.

        The configuration's list of seeds is cut into groups of `training.seeds_per_job`, then the
        seeds that only an experiment names. So a seed appended to the configuration does not change
        a job that was full.
        """
        rows: dict[str, list[Run]] = {}
        for run in self.trained():
            rows.setdefault(run.row, []).append(run)
        found: dict[tuple[int, ...], list[str]] = {}
        for row, runs in rows.items():
            size = self.config.training_of(runs[0].backbone).seeds_per_job
            wanted = [run.seed for run in runs if run.seed is not None]
            extra = [seed for seed in wanted if seed not in self.config.seeds]
            for order in (self.config.seeds, extra):
                for start in range(0, len(order), size):
                    chunk = tuple(one for one in order[start : start + size] if one in wanted)
                    if chunk:
                        found.setdefault(chunk, []).append(row)
        return found

    def evaluated_on(self, table: str) -> list[str]:
        """Return the datasets on which a table's runs are scored."""
        return [self.config.datasets.of(part) for part in self.experiments[table].parts()]

    def scores(self, table: str) -> list[str]:
        """Return the score files of a table, below the folder of the evaluate stage."""
        return [
            f"{run.path}/{dataset}.scores.json"
            for dataset in self.evaluated_on(table)
            for run in self.runs(table)
        ]

    def kind(self, dataset: str) -> Kind:
        """Return the kind of a dataset: captions, questions or conversations."""
        return dataset_kind(self.datasets[dataset])

    def score_options(self, runs: Sequence[Run], dataset: str, references: str) -> list[str]:
        """Return the options of `gapinit score` for predictions of runs on a dataset."""
        options = reference_options(self.kind(dataset), references)
        if self.kind(dataset) == "captions":
            options.append(f"--metrics={self.scorers(runs, dataset)}")
        return options

    def scorers(self, runs: Sequence[Run], dataset: str) -> str:
        """Return the `--metrics` of `gapinit score captions` that the tables of runs need."""
        wanted = {
            scorer
            for name, experiment in self.experiments.items()
            if any(run in row.runs for row in self.rows[name] for run in runs)
            for scorer, metrics in CAPTION_METRICS.items()
            for metric in experiment.metrics
            if metric in metrics and self.config.datasets.of(experiment.part(metric)) == dataset
        }
        # CIDEr, BLEU and ROUGE-L share a tokenisation and take a second; METEOR takes far longer.
        return ",".join(sorted(wanted | {"cider", "bleu", "rouge"}))

    def resource(self, backbone: str, name: str, default: int | None) -> int | None:
        """Return a resource from a backbone's file, else `default`; None: no request."""
        value: int | None = getattr(self.config.recipe_of(backbone).resources, name)
        return default if value is None else value

    def recipe(self, backbone: str) -> dict[str, Any]:
        """Return the recipe of a backbone for `gapinit train --recipe`."""
        training = self.config.training_of(backbone).model_dump(exclude=ELSEWHERE | NUMBERLESS)
        return training | self.config.lora.model_dump()

    def max_tokens(self, dataset: str, backbone: str) -> int:
        """Return the number of tokens to which training texts of a dataset are truncated."""
        training = self.config.training_of(backbone)
        captions = self.kind(dataset) == "captions"
        return training.max_caption_tokens if captions else training.max_sequence_tokens

    def max_new_tokens(self, dataset: str, backbone: str) -> int:
        """Return the maximum number of tokens of a prediction for a dataset."""
        decoding = self.config.decoding_of(backbone)
        captions = self.kind(dataset) == "captions"
        return decoding.max_new_tokens if captions else decoding.max_answer_tokens

    @property
    def default_gap(self) -> str:
        """Return the name of the default gap, which the layer choice and the figures read."""
        return f"{self.config.calibration.source}-{self.config.calibration.size}"

    def gap_name(self, run: Run) -> str:
        """Return the name of a run's gap: its own, or the default gap, with which B is compared."""
        source = run.calibration or self.config.calibration.source
        return f"{source}-{run.calibration_size or self.config.calibration.size}"

    def sources(self, calibration: str) -> list[str]:
        """Return the datasets of a calibration source."""
        parts = {"in-domain": ["calibration"], "ood": ["ood"], "mixed": ["calibration", "ood"]}
        return [self.config.datasets.of(part) for part in parts[calibration]]

    def uses_default_gap(self, run: Run) -> bool:
        """Return True if a run needs no direction other than the default gap."""
        return run.noise == 0 and self.gap_name(run) == self.default_gap

    def version(self, stage: str) -> int:
        """Return the version of a stage, a parameter of its rules (`gapinit.config.versions`)."""
        return VERSIONS[stage]

    def as_json(self) -> str:
        """Return the checked configuration as JSON, which the commands read."""
        return self.config.model_dump_json(by_alias=True)

    def first_with(self, metric: str) -> str | None:
        """Return the first table that has a metric; None: no table has it."""
        return next((name for name, it in self.experiments.items() if metric in it.metrics), None)

    def generated(self, dataset: str) -> bool:
        """Return True if the workflow generates a dataset."""
        return isinstance(self.datasets[dataset], ScenesSettings)

    def retrieved(self, dataset: str) -> list[str]:
        """Return the downloads of a dataset; none for a generated one or local folder."""
        settings = self.datasets[dataset]
        if isinstance(settings, ScenesSettings) or dataset in self.config.folders:
            return []
        return settings.retrieve

    def annotation_files(self, dataset: str) -> list[str]:
        """Return the annotation files of a caption dataset in a local folder.

        For other formats the list is empty, since the job itself searches the folder.
        """
        from gapinit.data.locate import find_annotations

        if self.kind(dataset) != "captions":
            return []
        root, annotations = self.local_paths(dataset)
        return [str(path) for path in find_annotations(root, annotations)]

    def local_options(self, dataset: str) -> str:
        """Return the folder of a dataset as quoted options of `gapinit data prepare`."""
        if self.generated(dataset):
            return ""
        root, annotations = self.local_paths(dataset)
        text = f"--data-root {shlex.quote(str(root))}"
        if annotations is not None:
            text += f" --annotations {shlex.quote(str(annotations))}"
        return text

    def local_paths(self, dataset: str) -> tuple[Path, Path | None]:
        """Return a dataset's folder, and the path of its annotations if the user gives one.

        A folder that the user names in `folders` replaces the downloads.
        """
        settings = self.datasets[dataset]
        assert isinstance(settings, FolderSettings)
        if dataset in self.config.folders:
            return Path(self.config.folders[dataset]), None
        if settings.retrieve:
            return Path(self.config.data) / (settings.root or dataset), None
        root, annotations = self.config.data_root or settings.root, self.config.annotations
        if root is None:
            raise GapinitError(
                f"dataset '{dataset}' is a local folder: give its path with --config "
                "data_root=FOLDER (and annotations=FILE_OR_FOLDER if they are not in "
                "FOLDER/annotations)"
            )
        return Path(root), Path(annotations) if annotations is not None else None

    def backbone_setting(self, backbone: str, key: str) -> Any:
        """Return one key of a backbone's file."""
        return read_yaml(self.folder / "backbones" / f"{backbone}.yaml").get(key)

    def python_path(self, executable: str, conda: bool) -> str:
        """Return shell text that makes rules import gapinit from the workflow's own folder.

        Without conda, rules use the Python that runs Snakemake; with conda, the environment's.
        """
        source = shlex.quote(str(self.folder.parent)).replace("{", "{{").replace("}", "}}")
        text = f"export PYTHONPATH={source}${{{{PYTHONPATH:+:$PYTHONPATH}}}}; "
        if not conda:
            programs = shlex.quote(str(Path(executable).parent))
            text += f"export PATH={programs.replace('{', '{{').replace('}', '}}')}:$PATH; "
        return text


def make_plan(content: Mapping[str, Any], folder: Path, sources: Sequence[Path] = ()) -> Plan:
    """Check a configuration and all files that it names, and return its plan.

    `folder` is `config/`. `content` was merged from the files `sources`, in which later files
    override earlier ones; values in none of them came from the command line.
    """
    origin = _origin(sources, content)
    config = load_config(content, folder, origin)
    datasets = {
        name: read_dataset_settings(folder / "datasets" / f"{name}.yaml")
        for name in config.datasets.named().values()
    }
    experiments, rows = {}, {}
    for name in config.experiments:
        path = folder / "experiments" / f"{name}.yaml"
        experiments[name] = load_experiment(path)
        require_datasets(experiments[name], config, name, origin)
        rows[name] = table_rows(experiments[name], config, str(path))
    plan = Plan(config, folder, datasets, experiments, rows)
    check_plan(plan, origin)
    return plan


def read_plan(folder: Path, configfile: Path | None, given: Sequence[str] = ()) -> Plan:
    """Return the plan of a configuration file, merged as Snakemake merges it.

    `folder` is `config/`. `given` (`KEY=VALUE`) overrides `configfile`, which overrides
    `default.yaml`; mappings are merged key by key.
    """
    sources = [folder / "default.yaml", *([configfile] if configfile is not None else [])]
    content: dict[str, Any] = {}
    for path in sources:
        content = merged(content, read_yaml(path))
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise GapinitError(f"--config {text}: expected KEY=VALUE")
        try:
            content = merged(content, {key: yaml.safe_load(value)})
        except yaml.YAMLError:
            raise GapinitError(f"--config {text}: the value is not valid YAML") from None
    return make_plan(content, folder, sources)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` updated with `over`; nested mappings are merged recursively."""
    result = dict(base)
    for key, value in over.items():
        known = result.get(key)
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            value = merged(known, value)
        result[key] = value
    return result


def _origin(sources: Sequence[Path], content: Mapping[str, Any]) -> Origin:
    """Return a function that names the file that set a key."""
    files = {str(path): read_yaml(path) for path in sources}

    def origin(key: Sequence[Any]) -> str:
        if not key:
            return "configuration"
        used = _value_at(content, key)
        held = {name: _value_at(values, key) for name, values in files.items()}
        # NaN never equals NaN, but their text is the same.
        holding = [
            name for name, value in held.items() if value == used or repr(value) == repr(used)
        ]
        return holding[-1] if holding else "--config"

    return origin


def _value_at(content: Any, key: Sequence[Any]) -> Any:
    for part in key:
        if not isinstance(content, Mapping) or part not in content:
            # Inside a list, or missing: a file sets a list as a whole.
            return content if isinstance(content, list) else None
        content = content[part]
    return content
