# Functions for the inputs and options of the rules of all stages.
#
# A run's path contains its factors (gapinit/config/runs.py), the plan all other settings
# (gapinit/workflow/plan.py).

import json
import re
import shlex

from gapinit.data.downloads import read_downloads
from gapinit.workflow.shared_jobs import evaluation_jobs, scored_together
from gapinit.config.runs import Run
from gapinit.figures import FIGURES as DRAWN_FIGURES

EVALUATION_JOBS = evaluation_jobs(PLAN)
SCORED_TOGETHER = scored_together(EVALUATION_JOBS)

DOWNLOADS_TABLE = Path(CONFIG.downloads or FOLDER / "config/downloads.yaml")
try:
    DOWNLOADS = read_downloads(DOWNLOADS_TABLE)
except GapinitError as error:
    sys.exit(f"error: {error}")

FILES = {download.file_name: name for name, download in DOWNLOADS.items() if download.url}


def download_of(wildcards):
    """Return the name of a file's download."""
    return FILES[wildcards.file]


def archive_of(wildcards):
    """Return the file of a download; nothing for a manual download."""
    download = DOWNLOADS[wildcards.download]
    return f"{RETRIEVED}/downloads/{download.file_name}" if download.url else []


def dataset_files(wildcards):
    """Return a dataset's inputs: downloads, or the annotation files of a local folder.

    An edit of annotation files reruns all later stages.
    """
    name = wildcards.dataset
    if PLAN.retrieved(name):
        return [f"{RETRIEVED}/unpacked/{download}.json" for download in PLAN.retrieved(name)]
    return [] if PLAN.generated(name) else PLAN.annotation_files(name)


def local_options(wildcards):
    """Return the options for a local folder; nothing for generated datasets."""
    return PLAN.local_options(wildcards.dataset)


def pretraining_manifest(wildcards):
    """Return the manifest of a backbone's pretraining data; nothing for downloaded weights."""
    dataset = PLAN.backbone_setting(wildcards.backbone, "pretraining")
    return [f"{DATA}/{dataset}/manifest.json"] if dataset else []


def part_of(stage):
    """Return the shard part of an extraction's path; nothing for a single job."""
    return ".{shard}" if getattr(CONFIG.shards, stage) > 1 else ""


def shards_of(stage, stem):
    """Return the files of an extraction: one, or its shards."""
    count = getattr(CONFIG.shards, stage)
    if count == 1:
        return [f"{stem}.h5"]
    return [f"{stem}.{index}-of-{count}.h5" for index in range(1, count + 1)]


def shard_option(wildcards):
    """Return the option for a job's shard; nothing for a single job."""
    shard = wildcards.get("shard")
    return f"--shard={shard.replace('-of-', '/')}" if shard else ""


def states_of(wildcards):
    """Return the states of a calibration source: of one dataset, or of two for a mixture."""
    return [
        path
        for dataset in PLAN.sources(wildcards.calibration)
        for path in shards_of("states", f"{STATES}/{wildcards.backbone}/{dataset}")
    ]


def run_of(wildcards):
    """Return a job's run; for a row, one of its runs, since all seeds share their inputs."""
    return Run.parse(wildcards.get("run") or f"{wildcards.row}/seed0")


def trunk_of(wildcards):
    """Return the trunk below a run's adapted layers."""
    run = run_of(wildcards)
    return shards_of("trunk", f"{TRUNKS}/{run.backbone}/{run.dataset}/{run.layers}")


def gap_of(wildcards):
    """Return a run's gap file: for its direction, or only for the alignment of B."""
    run = run_of(wildcards)
    return f"{GAPS}/{run.backbone}/{PLAN.gap_name(run)}.h5"


def backbone_name(wildcards):
    """Return the name of a job's backbone, from the wildcard or from the path of its run or row."""
    path = wildcards.get("run") or wildcards.get("row")
    return wildcards.get("backbone") or path.split("/")[0]


def layers_setting(key):
    """Return a function for a `layers` setting of a job's backbone."""
    return lambda wildcards: getattr(PLAN.config.layers_of(backbone_name(wildcards)), key)


def training_setting(key):
    """Return a function for a `training` setting of a job's backbone."""
    return lambda wildcards: getattr(PLAN.config.training_of(backbone_name(wildcards)), key)


def decoding_setting(key):
    """Return a function for a `decoding` setting of a job's backbone."""
    return lambda wildcards: getattr(PLAN.config.decoding_of(backbone_name(wildcards)), key)


def resource(name, default=None):
    """Return a function for a resource: from the backbone's file, else the rule's default."""
    return lambda wildcards: PLAN.resource(backbone_name(wildcards), name, default)


def runtime_of(minutes, runs, shards=1):
    """Return a function for the runtime, in minutes, of a job with several runs in sequence.

    ASSUME: the sum of the runtimes of single jobs, although the job loads the backbone once.
    """
    return lambda wildcards: -(
        -runs * PLAN.resource(backbone_name(wildcards), "runtime", minutes) // shards
    )


def memory(megabytes):
    """Return a function for the memory of a job, which grows by `megabytes` on each retry."""
    return lambda wildcards, attempt: attempt * megabytes


def backbone_memory(default):
    """Return the same for a job that loads a backbone, whose file may override the default."""
    return lambda wildcards, attempt: (
        attempt * PLAN.resource(backbone_name(wildcards), "mem_mb", default)
    )


def max_tokens(wildcards):
    """Return the largest number of tokens of a training text."""
    return PLAN.max_tokens(wildcards.dataset, backbone_name(wildcards))


def max_new_tokens(jobs):
    """Return a function for the options with the largest prediction length per dataset."""
    return lambda wildcards: [
        f"--max-new-tokens={PLAN.max_new_tokens(dataset, backbone_name(wildcards))}"
        for dataset in jobs.datasets
    ]


def recipe_of(wildcards):
    """Return the recipe file of a run's backbone."""
    return f"{RECIPES}/{backbone_name(wildcards)}.json"


def recipe_json(wildcards):
    """Return the recipe of a backbone as JSON; a change reruns its trainings."""
    return json.dumps(PLAN.recipe(wildcards.backbone))


def train_options(wildcards, output):
    """Return the options for a job's runs, their folders and the steps between checkpoints.

    Derived from the outputs, so that Snakemake does not retrain when they change; none of them
    affects the numbers.
    """
    folders = [Path(record).parent for record in output.run]
    training = PLAN.config.training_of(backbone_name(wildcards))
    options = [
        ["--run", str(folder.relative_to(RUNS)), "--output", str(folder)] for folder in folders
    ]
    return [*sum(options, []), f"--checkpoint-steps={training.checkpoint_steps}"]


def layers_of(wildcards):
    """Return the layer choice of a run's backbone."""
    return f"{GAPS}/{run_of(wildcards).backbone}/layers.json"


def backbone_of(wildcards):
    """Return the folder of a job's backbone."""
    return f"{BACKBONES}/{backbone_name(wildcards)}"


def features_of(jobs):
    """Return a function for the image features of the jobs' datasets, dataset by dataset."""

    def paths(wildcards):
        stem = f"{FEATURES}/{backbone_name(wildcards)}"
        return [
            path for dataset in jobs.datasets for path in shards_of("features", f"{stem}/{dataset}")
        ]

    return paths


def adapters_of(jobs):
    """Return a function for the adapters of a row's seeds; nothing for the untrained backbone."""
    return lambda wildcards: [
        f"{RUNS}/{wildcards.row}/{seed}/adapter/adapter_model.safetensors"
        for seed in jobs.seeds
        if Run.parse(f"{wildcards.row}/{seed}").trained
    ]


def scoring_name(seeds):
    """Return the part of a scoring rule's name that lists its seeds."""
    return "_".join(seed.removeprefix("seed") for seed in seeds).replace("-", "_")


def score_options(seeds):
    """Return a function for the options of a dataset's scorer: references and metrics."""

    def options(wildcards, input):
        runs = [Run.parse(f"{wildcards.row}/{seed}") for seed in seeds]
        return PLAN.score_options(runs, wildcards.dataset, input.references)

    return options


def scores_of(wildcards):
    """Return all score files of a table."""
    return [f"{EVALUATIONS}/{path}" for path in PLAN.scores(wildcards.table)]


def published_of(wildcards):
    """Return the published numbers of a table's paper."""
    paper = PLAN.experiments[wildcards.table].paper
    return str(FOLDER / f"config/published/{paper}.csv")


def records_of(wildcards):
    """Return the record of every trained run in a table."""
    return [f"{RUNS}/{run.path}/run.json" for run in PLAN.trained(wildcards.table)]


def all_scores(wildcards):
    """Return all score files of the configuration."""
    paths = [f"{EVALUATIONS}/{path}" for table in PLAN.rows for path in PLAN.scores(table)]
    return list(dict.fromkeys(paths))


def all_records(wildcards):
    """Return the record of every trained run of the configuration."""
    return [f"{RUNS}/{run.path}/run.json" for run in PLAN.trained()]


def tracked_runs(wildcards):
    """Return the tracker record of every trained run; nothing without trackers."""
    runs = PLAN.trained() if CONFIG.report_to else []
    return [f"{TRACKED}/{run.path}.json" for run in runs]


def tracked_folder(wildcards, output):
    """Return the folder for the trackers' files, above the record of a run."""
    return str(Path(output[0]).parents[len(Path(wildcards.run).parts) - 1])


def experiment_files(wildcards):
    """Return the experiment files in the order of the configuration."""
    return [str(FOLDER / f"config/experiments/{name}.yaml") for name in PLAN.experiments]


def figure_inputs(wildcards):
    """Return a figure's input files by the name of the command's option."""
    first = next(iter(PLAN.experiments))
    studied = PLAN.first_with("loss_oscillation")
    dynamics = [f"{RUNS}/{run.path}/run.json" for run in PLAN.trained(studied)] if studied else []
    return {
        "figure1a": {"table": f"{TABLES}/{first}.csv"},
        "figure1b": {"table": f"{TABLES}/{PLAN.first_with('VQAv2_accuracy')}.csv"},
        "figure1c": {"states": DEFAULT_STATES, "gap": DEFAULT_GAP},
        "figure2": {
            "gap": DEFAULT_GAP,
            "run": [
                f"{RUNS}/{run.path}/run.json"
                for run in PLAN.trained()
                if run.backbone == CONFIG.backbone
                and run.method in ("gap-init", "random-b")
                and PLAN.uses_default_gap(run)
            ],
        },
        "figure3": {"gap": DEFAULT_GAP},
        "figure4": {"gap": DEFAULT_GAP},
        "figure5": {},
        "curves": {"run": [f"{RUNS}/{run.path}/run.json" for run in PLAN.trained(first)]},
        "dynamics_loss": {"run": dynamics},
        "dynamics_gradnorm": {"run": dynamics},
    }[wildcards.figure]


def figure_options(wildcards, input):
    """Return a figure's input files as options of the command."""
    options = []
    for name, paths in figure_inputs(wildcards).items():
        paths = [paths] if isinstance(paths, str) else paths
        options += [f"--{name}={path}" for path in paths]
    return options
