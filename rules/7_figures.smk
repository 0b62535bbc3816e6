# Stage 7, figures and report: from tables, gaps and runs to pictures and one page.
#
# in:   results/<name>/{2_states,3_gap,4_train,5_evaluate,6_tables}/
# out:  results/<name>/7_figures/<figure>.{pdf,png,svg,csv}, results/<name>/report.html
#
# A figure is one module of gapinit/figures; what it needs is what its entry here names.

FIGURES = f"{OUT}/7_figures"
DEFAULT_GAP = f"{GAPS}/{CONFIG.backbone}/{CONFIG.calibration.source}-{CONFIG.calibration.size}.h5"
DEFAULT_STATES = f"{STATES}/{CONFIG.backbone}/{PLAN.in_domain}.h5"


def figure_inputs(wildcards):
    """The files that a figure draws, by the name of its command's option."""
    first = next(iter(PLAN.experiments))
    return {
        "figure1a": {"table": f"{TABLES}/{first}.csv"},
        "figure1c": {"states": DEFAULT_STATES, "gap": DEFAULT_GAP},
        "figure2": {
            "gap": DEFAULT_GAP,
            "run": [
                f"{RUNS}/{run.path}/run.json"
                for run in PLAN.trained()
                if run.method in ("gap-init", "random-b") and PLAN.uses_default_gap(run)
            ],
        },
        "figure3": {"gap": DEFAULT_GAP},
        "figure4": {"gap": DEFAULT_GAP},
        "figure5": {},
        "curves": {"run": [f"{RUNS}/{run.path}/run.json" for run in PLAN.trained(first)]},
    }[wildcards.figure]


def figure_options(wildcards, input):
    """The same files as options of the command, a list as an option repeated."""
    options = []
    for name, paths in figure_inputs(wildcards).items():
        paths = [paths] if isinstance(paths, str) else paths
        options += [f"--{name}={path}" for path in paths]
    return options


rule figure:
    message:
        "{wildcards.figure}"
    input:
        unpack(figure_inputs),
    output:
        report(
            f"{FIGURES}/{{figure}}.pdf",
            caption="../workflow/report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}", "format": "PDF"},
        ),
        report(
            f"{FIGURES}/{{figure}}.png",
            caption="../workflow/report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}", "format": "PNG"},
        ),
        f"{FIGURES}/{{figure}}.svg",
        f"{FIGURES}/{{figure}}.csv",
    params:
        options=figure_options,
        stem=f"{FIGURES}/{{figure}}",
        version=PLAN.version("figures"),
    log:
        f"{LOGS}/7_figures/{{figure}}.log",
    conda:
        "../envs/gapinit.yaml"
    wildcard_constraints:
        figure="figure1a|figure1c|figure2|figure3|figure4|figure5|curves",
    shell:
        "python -m gapinit --log-file {log:q} figure {wildcards.figure} {params.options:q}"
        " --output {params.stem:q}"


rule report:
    message:
        "Report"
    input:
        tables=expand(f"{TABLES}/{{table}}.csv", table=PLAN.experiments),
        experiments=experiment_files,
        configuration=rules.configuration.output,
        claims=rules.claims.output,
        runs=rules.runs.output,
        scores=all_scores,
        figures=expand(f"{FIGURES}/{{figure}}.svg", figure=CONFIG.figures),
        manifest=f"{DATA}/{PLAN.in_domain}/manifest.json",
        layers=f"{GAPS}/{CONFIG.backbone}/layers.json",
    output:
        f"{OUT}/report.html",
    params:
        tables=lambda wildcards, input: [f"--table={path}" for path in input.tables],
        experiments=lambda wildcards, input: [f"--experiment={path}" for path in input.experiments],
        figures=lambda wildcards, input: [f"--figure={path}" for path in input.figures],
        evaluations=EVALUATIONS,
        runs=RUNS,
        version=PLAN.version("report"),
    log:
        f"{LOGS}/7_figures/report.log",
    conda:
        "../envs/gapinit.yaml"
    shell:
        "python -m gapinit --log-file {log:q} report {params.tables:q} {params.experiments:q}"
        " {params.figures:q} --configuration {input.configuration:q} --claims {input.claims:q}"
        " --runs-table {input.runs:q} --evaluations {params.evaluations:q} --runs {params.runs:q}"
        " --manifest {input.manifest:q} --layers {input.layers:q} --output {output:q}"
