# Stage 4, train: from gap vectors and cached trunks to one adapter per run.
#
# in:   results/<name>/3_gap/, results/1_backbones/<backbone>/, results/1_data/<dataset>/
# out:  results/<name>/4_train/trunk/<backbone>/<dataset>/<layers>.h5
#       results/<name>/4_train/recipes/<backbone>.json
#       results/<name>/4_train/runs/<run>/{adapter/,steps.csv,run.json,process.json}
#
# <run> is made of the run's factors (gapinit/config/runs.py); a run in several tables is trained
# once. <row> is the same without the seed: a job trains at most training.seeds_per_job seeds of a
# row, and each set of seeds has a rule.


TRUNKS = f"{OUT}/4_train/trunk"
RUNS = f"{OUT}/4_train/runs"
RECIPES = f"{OUT}/4_train/recipes"


rule trunk:
    input:
        backbone=rules.backbone.output,
        manifest=rules.dataset.output.manifest,
        layers=rules.layers.output,
    output:
        f"{TRUNKS}/{{backbone}}/{{dataset}}/{{layers}}{part_of('trunk')}.h5",
    log:
        f"{LOGS}/4_train/trunk/{{backbone}}/{{dataset}}/{{layers}}{part_of('trunk')}.log",
    cache: "omit-software"
    conda:
        "../envs/gapinit.yaml"
    resources:
        expected_s=12,
        mem_mb=backbone_memory(3000),
        gpu_mem_mb=resource("gpu_mem_mb"),
        runtime=resource("runtime", 240),
        gpu=1,
    params:
        strategy=lambda wildcards: wildcards.layers,
        max_tokens=max_tokens,
        mode=training_setting("trunk"),
        dtype=training_setting("trunk_dtype"),
        shard=shard_option,
        version=PLAN.version("trunk"),
    message:
        "Trunk of {wildcards.backbone} on {wildcards.dataset} below the {wildcards.layers} layers"
    shell:
        "python -m gapinit --log-file {log:q} trunk --backbone {input.backbone:q}"
        " --manifest {input.manifest:q} --layers {input.layers:q}"
        " --strategy {params.strategy} --output {output:q}"
        " --max-tokens {params.max_tokens} --mode {params.mode} --dtype {params.dtype} {params.shard}"


# The settings of a backbone's trainings except the runs' factors; a change of the file retrains.
rule recipe:
    output:
        f"{RECIPES}/{{backbone}}.json",
    log:
        f"{LOGS}/4_train/recipes/{{backbone}}.log",
    conda:
        "../envs/gapinit.yaml"
    resources:
        expected_s=1,
    params:
        content=recipe_json,
    message:
        "Training recipe of {wildcards.backbone}"
    shell:
        "python -m gapinit --log-file {log:q} recipe --content {params.content:q} --output {output:q}"


for SEEDS, ROWS in PLAN.chunks().items():

    rule:
        name:
            f"train_{'_'.join(map(str, SEEDS))}"
        input:
            backbone=backbone_of,
            trunk=trunk_of,
            layers=layers_of,
            gap=gap_of,
            recipe=recipe_of,
        output:
            adapter=[f"{RUNS}/{{row}}/seed{it}/adapter/adapter_model.safetensors" for it in SEEDS],
            settings=[f"{RUNS}/{{row}}/seed{it}/adapter/adapter_config.json" for it in SEEDS],
            steps=[f"{RUNS}/{{row}}/seed{it}/steps.csv" for it in SEEDS],
            run=[f"{RUNS}/{{row}}/seed{it}/run.json" for it in SEEDS],
            process=[f"{RUNS}/{{row}}/seed{it}/process.json" for it in SEEDS],
        log:
            f"{LOGS}/4_train/{{row}}/seed{'-'.join(map(str, SEEDS))}.log",
        benchmark:
            f"{OUT}/benchmarks/4_train/{{row}}/seed{'-'.join(map(str, SEEDS))}.tsv"
        wildcard_constraints:
            row="|".join(map(re.escape, ROWS)),
        conda:
            "../envs/gapinit.yaml"
        resources:
            expected_s=5 + 13 * len(SEEDS),
            mem_mb=backbone_memory(3000),
            gpu_mem_mb=resource("gpu_mem_mb"),
            runtime=runtime_of(480, len(SEEDS)),
            gpu=1,
        params:
            trunk=lambda wildcards, input: [f"--trunk={path}" for path in trunk_of(wildcards)],
            runs=train_options,
            version=PLAN.version("train"),
        message:
            f"Train {{wildcards.row}}/{', '.join(f'seed{it}' for it in SEEDS)}"
        shell:
            "python -m gapinit --log-file {log:q} train {params.runs:q}"
            " --backbone {input.backbone:q} {params.trunk:q} --layers {input.layers:q}"
            " --gap {input.gap:q} --recipe {input.recipe:q}"
