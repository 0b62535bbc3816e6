# Stage 5, evaluate: from adapters to captions, answers and scores.
#
# in:   results/<name>/4_train/runs/<run>/adapter/, results/1_data/<dataset>/
# out:  results/<name>/5_evaluate/features/<backbone>/<dataset>.h5
#       results/<name>/5_evaluate/runs/<run>/<dataset>.{predictions,scores}.json

# A row's seeds share a job, which loads the backbone, or starts Java, once.

FEATURES = f"{OUT}/5_evaluate/features"
EVALUATIONS = f"{OUT}/5_evaluate/runs"


rule features:
    input:
        backbone=rules.backbone.output,
        manifest=rules.dataset.output.manifest,
    output:
        f"{FEATURES}/{{backbone}}/{{dataset}}{part_of('features')}.h5",
    log:
        f"{LOGS}/5_evaluate/features/{{backbone}}/{{dataset}}{part_of('features')}.log",
    benchmark:
        f"{OUT}/benchmarks/5_evaluate/features/{{backbone}}/{{dataset}}{part_of('features')}.tsv"
    conda:
        "../envs/gapinit.yaml"
    resources:
        expected_s=7,
        mem_mb=backbone_memory(3000),
        gpu_mem_mb=resource("gpu_mem_mb"),
        runtime=resource("runtime", 60),
        gpu=1,
    params:
        shard=shard_option,
        version=PLAN.version("predict"),
    message:
        "Image features of {wildcards.dataset}, once for all runs"
    shell:
        "python -m gapinit --log-file {log:q} features --backbone {input.backbone:q}"
        " --manifest {input.manifest:q} --output {output:q} --split test {params.shard}"


# If `shards.predict` is above 1, several jobs answer one part each, and another joins the parts.
ANSWERS = ".predictions.json" if CONFIG.shards.predict == 1 else ".{shard}.answers.json"


# One rule per combination of seeds and datasets. `row` is a run's path without its seed.
for jobs in EVALUATION_JOBS:

    rule:
        name:
            f"predict_{jobs.name}"
        input:
            backbone=backbone_of,
            manifest=expand(rules.dataset.output.manifest, dataset=jobs.datasets),
            features=features_of(jobs),
            adapter=adapters_of(jobs),
        output:
            [f"{EVALUATIONS}/{{row}}/{path}{ANSWERS}" for path in jobs.paths()],
        log:
            f"{LOGS}/5_evaluate/{{row}}/predict_{jobs.name}{part_of('predict')}.log",
        benchmark:
            f"{OUT}/benchmarks/5_evaluate/{{row}}/predict_{jobs.name}{part_of('predict')}.tsv"
        wildcard_constraints:
            row="|".join(map(re.escape, jobs.rows)),
        conda:
            "../envs/gapinit.yaml"
        resources:
            expected_s=6 + 3 * len(jobs.paths()),
            mem_mb=backbone_memory(3000),
            gpu_mem_mb=resource("gpu_mem_mb"),
            runtime=runtime_of(240, len(jobs.paths()), CONFIG.shards.predict),
            gpu=1,
        params:
            manifest=lambda wildcards, input: [f"--manifest={path}" for path in input.manifest],
            features=lambda wildcards, input: [f"--features={path}" for path in input.features],
            adapter=lambda wildcards, input: [
                f"--adapter={Path(path).parent}" for path in input.adapter
            ],
            output=lambda wildcards, output: [f"--output={path}" for path in output],
            num_beams=decoding_setting("num_beams"),
            max_new_tokens=max_new_tokens(jobs),
            batch_size=decoding_setting("batch_size"),
            shard=shard_option,
            version=PLAN.version("predict"),
        message:
            f"Predictions for {', '.join(jobs.datasets)} by {{wildcards.row}}"
        shell:
            "python -m gapinit --log-file {log:q} predict --backbone {input.backbone:q}"
            " {params.manifest:q} {params.features:q} {params.adapter:q} {params.output:q}"
            " --num-beams {params.num_beams} {params.max_new_tokens}"
            " --batch-size {params.batch_size} {params.shard}"

    if CONFIG.shards.predict > 1:

        rule:
            name:
                f"gather_{jobs.name}"
            input:
                manifest=expand(rules.dataset.output.manifest, dataset=jobs.datasets),
                parts=[
                    f"{EVALUATIONS}/{{row}}/{path}.{index}-of-{CONFIG.shards.predict}.answers.json"
                    for path in jobs.paths()
                    for index in range(1, CONFIG.shards.predict + 1)
                ],
            output:
                [f"{EVALUATIONS}/{{row}}/{path}.predictions.json" for path in jobs.paths()],
            log:
                f"{LOGS}/5_evaluate/{{row}}/gather_{jobs.name}.log",
            wildcard_constraints:
                row="|".join(map(re.escape, jobs.rows)),
            group:
                "scores"
            conda:
                "../envs/gapinit.yaml"
            resources:
                expected_s=6,
            params:
                manifest=lambda wildcards, input: [f"--manifest={path}" for path in input.manifest],
                parts=lambda wildcards, input: [f"--part={path}" for path in input.parts],
                output=lambda wildcards, output: [f"--output={path}" for path in output],
                version=PLAN.version("predict"),
            message:
                f"Predictions for {', '.join(jobs.datasets)} by {{wildcards.row}}, joined"
            shell:
                "python -m gapinit --log-file {log:q} gather {params.manifest:q} {params.parts:q}"
                " {params.output:q}"


# A cluster submits several jobs of a group together; on one machine a group has no effect. The
# profile cannot set the group because the rule's name depends on the plan.
for seeds, rows in SCORED_TOGETHER.items():

    rule:
        name:
            f"score_{scoring_name(seeds)}"
        input:
            references=rules.dataset.output.references,
            predictions=[
                f"{EVALUATIONS}/{{row}}/{seed}/{{dataset}}.predictions.json" for seed in seeds
            ],
        output:
            [f"{EVALUATIONS}/{{row}}/{seed}/{{dataset}}.scores.json" for seed in seeds],
        log:
            f"{LOGS}/5_evaluate/{{row}}/score_{scoring_name(seeds)}_on_{{dataset}}.log",
        benchmark:
            f"{OUT}/benchmarks/5_evaluate/{{row}}/score_{scoring_name(seeds)}_on_{{dataset}}.tsv"
        wildcard_constraints:
            row="|".join(map(re.escape, rows)),
        group:
            "scores"
        conda:
            "../envs/gapinit.yaml"
        resources:
            expected_s=2 + len(seeds),
            mem_mb=memory(2500),
            runtime=30 + 30 * len(seeds),
        params:
            benchmark=lambda wildcards: PLAN.kind(wildcards.dataset),
            references=score_options(seeds),
            predictions=lambda wildcards, input: [
                f"--predictions={path}" for path in input.predictions
            ],
            output=lambda wildcards, output: [f"--output={path}" for path in output],
            version=PLAN.version("score"),
        message:
            "Scores of all seeds of {wildcards.row} on {wildcards.dataset}"
        shell:
            "python -m gapinit --log-file {log:q} score {params.benchmark} {params.references:q}"
            " {params.predictions:q} {params.output:q}"
