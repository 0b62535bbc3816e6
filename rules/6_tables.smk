# Stage 6, tables: from scores to the paper's tables, published numbers beside measured ones.
#
# in:   results/<name>/5_evaluate/runs/, results/<name>/4_train/runs/, config/published/*.csv
# out:  results/<name>/6_tables/<table>.{csv,md,tex}, runs.csv, claims.csv

TABLES = f"{OUT}/6_tables"


# Tables multiply the same experiment files out as the Snakefile does, so they read the same
# configuration.
rule configuration:
    message:
        "Configuration, as checked"
    output:
        f"{OUT}/configuration.json",
    params:
        content=PLAN.as_json(),
    log:
        f"{LOGS}/configuration.log",
    conda:
        "../envs/gapinit.yaml"
    shell:
        "python -m gapinit --log-file {log:q} configuration --content {params.content:q}"
        " --output {output:q}"


def scores_of(wildcards):
    """Every score that a table stands on."""
    return [f"{EVALUATIONS}/{path}" for path in PLAN.scores(wildcards.table)]


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


rule table:
    message:
        "{wildcards.table}"
    input:
        experiment=FOLDER / "config/experiments/{table}.yaml",
        configuration=rules.configuration.output,
        scores=scores_of,
        records=records_of,
        published=FOLDER / "config/published/gap-init.csv",
    output:
        csv=report(
            f"{TABLES}/{{table}}.csv",
            caption="../workflow/report/table.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
        markdown=f"{TABLES}/{{table}}.md",
        latex=f"{TABLES}/{{table}}.tex",
    params:
        evaluations=EVALUATIONS,
        runs=RUNS,
        published=subpath(input.published, parent=True),
        version=PLAN.version("tables"),
    log:
        f"{LOGS}/6_tables/{{table}}.log",
    conda:
        "../envs/gapinit.yaml"
    wildcard_constraints:
        table="|".join(PLAN.experiments),
    shell:
        "python -m gapinit --log-file {log:q} table --experiment {input.experiment:q}"
        " --configuration {input.configuration:q} --evaluations {params.evaluations:q}"
        " --runs {params.runs:q} --published {params.published:q} --output {output.csv:q}"


rule runs:
    message:
        "All runs, one line for each metric"
    input:
        experiments=experiment_files,
        configuration=rules.configuration.output,
        scores=all_scores,
        records=all_records,
    output:
        f"{TABLES}/runs.csv",
    params:
        experiments=lambda wildcards, input: [f"--experiment={path}" for path in input.experiments],
        evaluations=EVALUATIONS,
        runs=RUNS,
        version=PLAN.version("tables"),
    log:
        f"{LOGS}/6_tables/runs.log",
    conda:
        "../envs/gapinit.yaml"
    shell:
        "python -m gapinit --log-file {log:q} runs {params.experiments:q}"
        " --configuration {input.configuration:q} --evaluations {params.evaluations:q}"
        " --runs {params.runs:q} --output {output:q}"


rule claims:
    message:
        "Verdicts on the paper's claims"
    input:
        experiments=experiment_files,
        configuration=rules.configuration.output,
        scores=all_scores,
    output:
        report(
            f"{TABLES}/claims.csv",
            caption="../workflow/report/table.rst",
            category="Tables",
            labels={"table": "claims"},
        ),
    params:
        experiments=lambda wildcards, input: [f"--experiment={path}" for path in input.experiments],
        evaluations=EVALUATIONS,
        version=PLAN.version("tables"),
    log:
        f"{LOGS}/6_tables/claims.log",
    conda:
        "../envs/gapinit.yaml"
    shell:
        "python -m gapinit --log-file {log:q} claims {params.experiments:q}"
        " --configuration {input.configuration:q} --evaluations {params.evaluations:q}"
        " --output {output:q}"
