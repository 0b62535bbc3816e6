# Stage 6, tables: from scores to the paper's tables, with published and measured numbers.
#
# in:   results/<name>/5_evaluate/runs/, results/<name>/4_train/runs/, config/published/*.csv
# out:  results/<name>/6_tables/<table>.{csv,md,tex}, results/<name>/6_tables/runs.{csv,parquet},
#       results/<name>/claims.{csv,md}
#       results/<name>/trackers/ if `report_to` names TensorBoard, W&B or MLflow

TABLES = f"{OUT}/6_tables"
TRACKED = f"{OUT}/trackers"


# The commands for tables read the Snakefile's checked configuration.
rule configuration:
    output:
        f"{OUT}/configuration.json",
    log:
        f"{LOGS}/configuration.log",
    conda:
        "../envs/gapinit.yaml"
    resources:
        expected_s=1,
    params:
        content=PLAN.as_json(),
    message:
        "Checked configuration"
    shell:
        "python -m gapinit --log-file {log:q} configuration --content {params.content:q}"
        " --output {output:q}"


rule table:
    input:
        experiment=FOLDER / "config/experiments/{table}.yaml",
        configuration=rules.configuration.output,
        scores=scores_of,
        records=records_of,
        published=published_of,
    output:
        csv=report(
            f"{TABLES}/{{table}}.csv",
            caption="../workflow/report/table.rst",
            category="Tables",
            labels={"table": "{table}", "format": "CSV"},
        ),
        markdown=report(
            f"{TABLES}/{{table}}.md",
            caption="../workflow/report/table.rst",
            category="Tables",
            labels={"table": "{table}", "format": "Markdown"},
        ),
        latex=report(
            f"{TABLES}/{{table}}.tex",
            caption="../workflow/report/table.rst",
            category="Tables",
            labels={"table": "{table}", "format": "LaTeX"},
        ),
    log:
        f"{LOGS}/6_tables/{{table}}.log",
    wildcard_constraints:
        table="|".join(PLAN.experiments),
    conda:
        "../envs/gapinit.yaml"
    resources:
        expected_s=3,
    params:
        evaluations=EVALUATIONS,
        runs=RUNS,
        published=subpath(input.published, parent=True),
        version=PLAN.version("tables"),
    message:
        "{wildcards.table}"
    shell:
        "python -m gapinit --log-file {log:q} table --experiment {input.experiment:q}"
        " --configuration {input.configuration:q} --evaluations {params.evaluations:q}"
        " --runs {params.runs:q} --published {params.published:q} --output {output.csv:q}"


rule runs:
    input:
        experiments=experiment_files,
        configuration=rules.configuration.output,
        scores=all_scores,
        records=all_records,
    output:
        csv=report(
            f"{TABLES}/runs.csv",
            caption="../workflow/report/runs.rst",
            category="Runs",
            labels={"table": "runs", "format": "CSV"},
        ),
        parquet=f"{TABLES}/runs.parquet",
        costs=f"{TABLES}/costs.csv",
    log:
        f"{LOGS}/6_tables/runs.log",
    conda:
        "../envs/gapinit.yaml"
    resources:
        expected_s=2,
    params:
        experiments=lambda wildcards, input: [f"--experiment={path}" for path in input.experiments],
        evaluations=EVALUATIONS,
        runs=RUNS,
        version=PLAN.version("tables"),
    message:
        "All runs, one line per metric"
    shell:
        "python -m gapinit --log-file {log:q} runs {params.experiments:q}"
        " --configuration {input.configuration:q} --evaluations {params.evaluations:q}"
        " --runs {params.runs:q} --output {output.csv:q}"


rule claims:
    input:
        experiments=experiment_files,
        configuration=rules.configuration.output,
        scores=all_scores,
        records=all_records,
    output:
        csv=report(
            f"{OUT}/claims.csv",
            caption="../workflow/report/claims.rst",
            category="Claims",
            labels={"table": "claims", "format": "CSV"},
        ),
        markdown=f"{OUT}/claims.md",
    log:
        f"{LOGS}/6_tables/claims.log",
    conda:
        "../envs/gapinit.yaml"
    resources:
        expected_s=2,
    params:
        experiments=lambda wildcards, input: [f"--experiment={path}" for path in input.experiments],
        evaluations=EVALUATIONS,
        runs=RUNS,
        version=PLAN.version("tables"),
    message:
        "Verdicts on the paper's claims"
    shell:
        "python -m gapinit --log-file {log:q} claims {params.experiments:q}"
        " --configuration {input.configuration:q} --evaluations {params.evaluations:q}"
        " --runs {params.runs:q} --output {output.csv:q}"


# Step logs of runs to trackers, also of runs trained earlier.
rule track:
    input:
        record=f"{RUNS}/{{run}}/run.json",
        steps=f"{RUNS}/{{run}}/steps.csv",
    output:
        f"{TRACKED}/{{run}}.json",
    log:
        f"{LOGS}/6_tables/trackers/{{run}}.log",
    conda:
        "../envs/gapinit.yaml"
    resources:
        expected_s=6,
    params:
        run=subpath(input.record, parent=True),
        report_to=[f"--report-to={name}" for name in CONFIG.report_to],
        folder=tracked_folder,
    message:
        "Training metrics of {wildcards.run} to the trackers"
    shell:
        "python -m gapinit --log-file {log:q} track --run {params.run:q} {params.report_to:q}"
        " --folder {params.folder:q} --output {output:q}"
