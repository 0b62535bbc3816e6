# Which files a job reads: the functions that the rules of all stages take as inputs and options.
#
# A run's factors stand in its path (gapinit/runs.py); the plan (gapinit/plan.py) knows the rest.

import re
import shlex

from gapinit.data.downloads import read_downloads
from gapinit.runs import Run

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


def states_of(wildcards):
    """The states that a calibration source draws from: one dataset's, or two for a mixture."""
    return [
        f"{STATES}/{wildcards.backbone}/{dataset}.h5"
        for dataset in PLAN.sources(wildcards.calibration)
    ]


def trunk_of(wildcards):
    """The trunk below the layers that a run adapts."""
    run = Run.parse(wildcards.run)
    return f"{TRUNKS}/{run.backbone}/{run.dataset}/{run.layers}.h5"


def gap_of(wildcards):
    """A run's gap: its direction, or for methods without one what B is compared with."""
    run = Run.parse(wildcards.run)
    return f"{GAPS}/{run.backbone}/{PLAN.gap_name(run)}.h5"


def backbone_name(wildcards):
    """The backbone that a job is about: the path's own, or its run's."""
    return wildcards.get("backbone") or Run.parse(wildcards.run).backbone


def layers_setting(key):
    """What the plan says of the layers of a job's backbone."""
    return lambda wildcards: getattr(PLAN.layers_of(backbone_name(wildcards)), key)


def training_setting(key):
    """What the plan says of the training of a job's backbone."""
    return lambda wildcards: getattr(PLAN.training_of(backbone_name(wildcards)), key)


def decoding_setting(key):
    """What the plan says of the decoding of a job's backbone."""
    return lambda wildcards: getattr(PLAN.decoding_of(backbone_name(wildcards)), key)


def resource(name, default=None):
    """What a job needs: what its backbone's file says, or the rule's default; None: unset."""
    return lambda wildcards: PLAN.resource(backbone_name(wildcards), name, default)


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


def max_new_tokens(wildcards):
    """How long a prediction may become."""
    return PLAN.max_new_tokens(wildcards.dataset, backbone_name(wildcards))


def grouping_option(wildcards):
    """Whether batches are of like length, as an option of the command."""
    training = PLAN.training_of(backbone_name(wildcards))
    return "--group-by-length" if training.group_by_length else ""


def layers_of(wildcards):
    """The layer choice of a run's backbone."""
    return f"{GAPS}/{Run.parse(wildcards.run).backbone}/layers.json"


def backbone_of(wildcards):
    """The backbone's folder."""
    return f"{BACKBONES}/{Run.parse(wildcards.run).backbone}"


def features_of(wildcards):
    """Image features of the dataset that a run is evaluated on."""
    return f"{FEATURES}/{Run.parse(wildcards.run).backbone}/{wildcards.dataset}.h5"


def adapter_of(wildcards):
    """A run's adapter; nothing for the backbone as it is."""
    if not Run.parse(wildcards.run).trained:
        return []
    return f"{RUNS}/{wildcards.run}/adapter/adapter_model.safetensors"


def adapter_option(wildcards):
    """The folder of a run's adapter as an option; nothing for the backbone as it is."""
    adapter = adapter_of(wildcards)
    return f"--adapter={Path(adapter).parent}" if adapter else []


def score_options(wildcards, input):
    """What predictions are scored against, as options of the dataset's scorer."""
    return PLAN.score_options(Run.parse(wildcards.run), wildcards.dataset, input.references)


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
