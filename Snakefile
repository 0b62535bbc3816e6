# gapinit: from images to the tables and figures of "When Is Rank-1 Enough?".
#
#   snakemake --cores all                                     everything in config/default.yaml
#   snakemake --cores all --configfile config/demo.yaml       the headline tables and all figures
#   snakemake --cores all --configfile config/local.yaml --config data_root=FOLDER
#
# Stages, one file per stage in rules/, in the order in which data flows:
#   1 data -> 2 states -> 3 gap -> 4 train -> 5 evaluate -> 6 tables -> 7 figures and report

import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")

FOLDER = Path(workflow.current_basedir)
sys.path.insert(0, str(FOLDER))

from gapinit.errors import GapinitError
from gapinit.workflow.plan import make_plan


configfile: str(FOLDER / "config" / "default.yaml")


report: "workflow/report/workflow.rst"


SOURCES = [FOLDER / "config" / "default.yaml", *map(Path, workflow.overwrite_configfiles)]


# `make_plan` checks every name and number before Snakemake plans a job.
try:
    PLAN = make_plan(config, FOLDER / "config", SOURCES)
except GapinitError as error:
    # Not an exception: Snakemake would print a traceback.
    sys.exit(f"error: {error}")

CONFIG = PLAN.config
RESULTS = CONFIG.results
OUT = f"{RESULTS}/{CONFIG.name}"
LOGS = f"{OUT}/logs"

# Rules call `python -m gapinit` with Snakemake's Python, or with conda's.
# By default glibc maps every large tensor anew; reusing freed memory is much faster.
shell.prefix(
    "set -euo pipefail; "
    + PLAN.python_path(
        sys.executable, conda="conda" in str(workflow.deployment_settings.deployment_method).lower()
    )
    + "export HF_HUB_OFFLINE=${{HF_HUB_OFFLINE:-1}} TOKENIZERS_PARALLELISM=false "
    + "MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=1073741824; "
)


wildcard_constraints:
    backbone=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    dataset=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    layers=r"naive|gg-safe|all|all-vision",
    shard=r"\d+-of-\d+",
    calibration=r"in-domain|ood|mixed",
    size=r"\d+",
    run=r"[^/]+/[^/]+/.+/(no-adapter|seed\d+)",
    table=r"[A-Za-z0-9][A-Za-z0-9._-]*",


include: "rules/inputs.smk"
include: "rules/1_data.smk"
include: "rules/2_states.smk"
include: "rules/3_gap.smk"
include: "rules/4_train.smk"
include: "rules/5_evaluate.smk"
include: "rules/6_tables.smk"
include: "rules/7_figures.smk"


# Print the progress and the remaining time below Snakemake's output.
onstart:
    from gapinit.workflow.progress_line import follow, look_for_jobs_once

    look_for_jobs_once(workflow)
    follow(workflow)


rule all:
    default_target: True
    input:
        rules.report.output,
        tracked_runs,


# On a cluster, downloads run on Snakemake's machine: nodes may have no network access.
localrules:
    all,
    retrieve,
