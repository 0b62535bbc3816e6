# Stage 7, figures and report: from tables, gaps and runs to pictures and one page.
#
# in:   results/<name>/{2_states,3_gap,4_train,5_evaluate,6_tables}/
# out:  results/<name>/7_figures/<figure>.{pdf,png,svg,csv}, results/<name>/report.html
#
# gapinit/figures/__init__.py lists the figures; figure_inputs() in inputs.smk lists their inputs.

FIGURES = f"{OUT}/7_figures"
DEFAULT_GAP = f"{GAPS}/{CONFIG.backbone}/{CONFIG.calibration.source}-{CONFIG.calibration.size}.h5"
DEFAULT_STATES = shards_of(
    "states", f"{STATES}/{CONFIG.backbone}/{CONFIG.datasets.of('calibration')}"
)


rule figure:
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
        report(
            f"{FIGURES}/{{figure}}.svg",
            caption="../workflow/report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}", "format": "SVG"},
        ),
        f"{FIGURES}/{{figure}}.csv",
    log:
        f"{LOGS}/7_figures/{{figure}}.log",
    wildcard_constraints:
        figure="|".join(DRAWN_FIGURES),
    conda:
        "../envs/gapinit.yaml"
    resources:
        expected_s=4,
    params:
        options=figure_options,
        stem=f"{FIGURES}/{{figure}}",
        version=PLAN.version("figures"),
    message:
        "{wildcards.figure}"
    shell:
        "python -m gapinit --log-file {log:q} figure {wildcards.figure} {params.options:q}"
        " --output {params.stem:q}"


rule report:
    input:
        tables=expand(f"{TABLES}/{{table}}.csv", table=PLAN.experiments),
        experiments=experiment_files,
        configuration=rules.configuration.output,
        claims=rules.claims.output.csv,
        runs=rules.runs.output.csv,
        scores=all_scores,
        figures=expand(f"{FIGURES}/{{figure}}.svg", figure=CONFIG.figures),
        manifest=f"{DATA}/{PLAN.in_domain}/manifest.json",
        layers=f"{GAPS}/{CONFIG.backbone}/layers.json",
        rule_graph=FOLDER / "docs/rulegraph.svg",
    output:
        report(
            f"{OUT}/report.html",
            caption="../workflow/report/page.rst",
            category="Report",
            labels={"page": "everything on one page"},
        ),
    log:
        f"{LOGS}/7_figures/report.log",
    conda:
        "../envs/gapinit.yaml"
    resources:
        expected_s=3,
    params:
        tables=lambda wildcards, input: [f"--table={path}" for path in input.tables],
        experiments=lambda wildcards, input: [f"--experiment={path}" for path in input.experiments],
        figures=lambda wildcards, input: [f"--figure={path}" for path in input.figures],
        evaluations=EVALUATIONS,
        runs=RUNS,
        published=FOLDER / "config/published",
        version=PLAN.version("report"),
    message:
        "Report"
    shell:
        "python -m gapinit --log-file {log:q} report {params.tables:q} {params.experiments:q}"
        " {params.figures:q} --configuration {input.configuration:q} --claims {input.claims:q}"
        " --runs-table {input.runs:q} --evaluations {params.evaluations:q} --runs {params.runs:q}"
        " --manifest {input.manifest:q} --layers {input.layers:q} --published {params.published:q}"
        " --rule-graph {input.rule_graph:q} --output {output:q}"
