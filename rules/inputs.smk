# Which files a job reads: the functions that the rules of all stages take as inputs and options.
#
# A run's factors stand in its path (gapinit/config/runs.py); the plan (gapinit/workflow/plan.py) knows the rest.

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
    """The name of the download that a file is."""
    return FILES[wildcards.file]


def archive_of(wildcards):
    """The retrieved file of a download; nothing for what the user has to fetch."""
    download = DOWNLOADS[wildcards.download]
    return f"{RETRIEVED}/downloads/{download.file_name}" if download.url else []


def dataset_files(wildcards):
    """What a dataset is made of: downloads, or the annotation files of a local folder.

    An edit of those reruns what follows.
    """
    name = wildcards.dataset
    if PLAN.retrieved(name):
        return [f"{RETRIEVED}/unpacked/{download}.json" for download in PLAN.retrieved(name)]
    return [] if PLAN.generated(name) else PLAN.annotation_files(name)


def local_options(wildcards):
    """Where a local folder is, as options of the command; nothing for generated datasets."""
    return PLAN.local_options(wildcards.dataset)


def pretraining_manifest(wildcards):
    """What a backbone is pretrained on; nothing for one that is retrieved."""
    dataset = PLAN.backbone_setting(wildcards.backbone, "pretraining")
    return [f"{DATA}/{dataset}/manifest.json"] if dataset else []


def part_of(stage):
    """What stands in an extraction's path where it is made by several jobs; nothing for one."""
    return ".{shard}" if getattr(CONFIG.shards, stage) > 1 else ""


def shards_of(stage, stem):
    """The files of an extraction: one, or its shards."""
    count = getattr(CONFIG.shards, stage)
    if count == 1:
        return [f"{stem}.h5"]
    return [f"{stem}.{index}-of-{count}.h5" for index in range(1, count + 1)]


def shard_option(wildcards):
    """Which part of an extraction a job makes, as an option; nothing for all of it."""
    shard = wildcards.get("shard")
    return f"--shard={shard.replace('-of-', '/')}" if shard else ""


def states_of(wildcards):
    """The states that a calibration source draws from: one dataset's, or two for a mixture."""
    return [
        path
        for dataset in PLAN.sources(wildcards.calibration)
        for path in shards_of("states", f"{STATES}/{wildcards.backbone}/{dataset}")
    ]


def run_of(wildcards):
    """The run that a job is about; of a row, one of its runs: seeds share all inputs."""
    return Run.parse(wildcards.get("run") or f"{wildcards.row}/seed0")


def trunk_of(wildcards):
    """The trunk below the layers that a run adapts."""
    run = run_of(wildcards)
    return shards_of("trunk", f"{TRUNKS}/{run.backbone}/{run.dataset}/{run.layers}")


def gap_of(wildcards):
    """A run's gap: its direction, or for methods without one what B is compared with."""
    run = run_of(wildcards)
    return f"{GAPS}/{run.backbone}/{PLAN.gap_name(run)}.h5"


def backbone_name(wildcards):
    """The backbone that a job is about: the path's own, or that of its run or row."""
    path = wildcards.get("run") or wildcards.get("row")
    return wildcards.get("backbone") or path.split("/")[0]


def layers_setting(key):
    """What the plan says of the layers of a job's backbone."""
    return lambda wildcards: getattr(PLAN.config.layers_of(backbone_name(wildcards)), key)


def training_setting(key):
    """What the plan says of the training of a job's backbone."""
    return lambda wildcards: getattr(PLAN.config.training_of(backbone_name(wildcards)), key)


def decoding_setting(key):
    """What the plan says of the decoding of a job's backbone."""
    return lambda wildcards: getattr(PLAN.config.decoding_of(backbone_name(wildcards)), key)


def resource(name, default=None):
    """What a job needs: what its backbone's file says, or the rule's default; None: unset."""
    return lambda wildcards: PLAN.resource(backbone_name(wildcards), name, default)


def runtime_of(minutes, runs, shards=1):
    """What a job takes that does the same for several runs one after another, in minutes.

    ASSUME: as long as they would take in jobs of their own, though they load the backbone once.
    """
    return lambda wildcards: -(
        -runs * PLAN.resource(backbone_name(wildcards), "runtime", minutes) // shards
    )


def memory(megabytes):
    """What a job asks for, and as much again on each retry."""
    return lambda wildcards, attempt: attempt * megabytes


def backbone_memory(default):
    """The same for a job that loads a backbone, whose file may say more than the rule."""
    return lambda wildcards, attempt: (
        attempt * PLAN.resource(backbone_name(wildcards), "mem_mb", default)
    )


def max_tokens(wildcards):
    """The length to which a training text is cut."""
    return PLAN.max_tokens(wildcards.dataset, backbone_name(wildcards))


def max_new_tokens(jobs):
    """How long predictions for each dataset may become, as options of the command."""
    return lambda wildcards: [
        f"--max-new-tokens={PLAN.max_new_tokens(dataset, backbone_name(wildcards))}"
        for dataset in jobs.datasets
    ]


def recipe_of(wildcards):
    """The training recipe of a run's backbone."""
    return f"{RECIPES}/{backbone_name(wildcards)}.json"


def recipe_json(wildcards):
    """The same recipe as JSON: a change of it reruns the trainings that read the file."""
    return json.dumps(PLAN.recipe(wildcards.backbone))


def train_options(wildcards, output):
    """The runs of a job, their folders, and how often a checkpoint is written, as options.

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
    """The layer choice of a run's backbone."""
    return f"{GAPS}/{run_of(wildcards).backbone}/layers.json"


def backbone_of(wildcards):
    """The backbone's folder."""
    return f"{BACKBONES}/{backbone_name(wildcards)}"


def features_of(jobs):
    """Image features of the datasets that runs are evaluated on, each dataset's shards together."""

    def paths(wildcards):
        stem = f"{FEATURES}/{backbone_name(wildcards)}"
        return [
            path for dataset in jobs.datasets for path in shards_of("features", f"{stem}/{dataset}")
        ]

    return paths


def adapters_of(jobs):
    """The adapters of a row's seeds; nothing for the backbone as it is."""
    return lambda wildcards: [
        f"{RUNS}/{wildcards.row}/{seed}/adapter/adapter_model.safetensors"
        for seed in jobs.seeds
        if Run.parse(f"{wildcards.row}/{seed}").trained
    ]


def scoring_name(seeds):
    """What tells the rule that scores some seeds from the others."""
    return "_".join(seed.removeprefix("seed") for seed in seeds).replace("-", "_")


def score_options(seeds):
    """What predictions are scored against, and by what, as options of the dataset's scorer."""

    def options(wildcards, input):
        runs = [Run.parse(f"{wildcards.row}/{seed}") for seed in seeds]
        return PLAN.score_options(runs, wildcards.dataset, input.references)

    return options


def scores_of(wildcards):
    """Every score that a table stands on."""
    return [f"{EVALUATIONS}/{path}" for path in PLAN.scores(wildcards.table)]


def published_of(wildcards):
    """The published numbers of the paper that a table is of."""
    paper = PLAN.experiments[wildcards.table].paper
    return str(FOLDER / f"config/published/{paper}.csv")


def records_of(wildcards):
    """The record of every trained run in a table."""
    return [f"{RUNS}/{run.path}/run.json" for run in PLAN.trained(wildcards.table)]


def all_scores(wildcards):
    """Every score of the configuration."""
    paths = [f"{EVALUATIONS}/{path}" for table in PLAN.rows for path in PLAN.scores(table)]
    return list(dict.fromkeys(paths))


def all_records(wildcards):
    """The record of every trained run of the configuration."""
    return [f"{RUNS}/{run.path}/run.json" for run in PLAN.trained()]


def tracked_runs(wildcards):
    """The mark of every trained run that the configuration sends to trackers."""
    runs = PLAN.trained() if CONFIG.report_to else []
    return [f"{TRACKED}/{run.path}.json" for run in runs]


def tracked_folder(wildcards, output):
    """The folder for what trackers write, above the mark of a run."""
    return str(Path(output[0]).parents[len(Path(wildcards.run).parts) - 1])


def experiment_files(wildcards):
    """The experiment files of the configuration, in its order."""
    return [str(FOLDER / f"config/experiments/{name}.yaml") for name in PLAN.experiments]


def figure_inputs(wildcards):
    """The files that a figure draws, by the name of its command's option."""
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
    """The same files as options of the command, a list as an option repeated."""
    options = []
    for name, paths in figure_inputs(wildcards).items():
        paths = [paths] if isinstance(paths, str) else paths
        options += [f"--{name}={path}" for path in paths]
    return options
