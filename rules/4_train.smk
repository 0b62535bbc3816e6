# Stage 4, train: from gap vectors and cached trunks to one adapter a run.
#
# in:   results/<name>/3_gap/, results/1_backbones/<backbone>/, results/1_data/<dataset>/
# out:  results/<name>/4_train/trunk/<backbone>/<dataset>/<layers>.h5
#       results/<name>/4_train/runs/<run>/{adapter/,steps.csv,run.json}
#
# <run> spells the run's factors (gapinit/runs.py); a run that several tables ask for is made once.


TRUNKS = f"{OUT}/4_train/trunk"
RUNS = f"{OUT}/4_train/runs"


rule trunk:
    input:
        backbone=rules.backbone.output,
        manifest=rules.dataset.output.manifest,
        layers=rules.layers.output,
    output:
        f"{TRUNKS}/{{backbone}}/{{dataset}}/{{layers}}.h5",
    log:
        f"{LOGS}/4_train/trunk/{{backbone}}/{{dataset}}/{{layers}}.log",
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
        version=PLAN.version("trunk"),
    message:
        "Trunk of {wildcards.backbone} on {wildcards.dataset} below the {wildcards.layers} layers"
    shell:
        "python -m gapinit --log-file {log:q} trunk --backbone {input.backbone:q}"
        " --manifest {input.manifest:q} --layers {input.layers:q}"
        " --strategy {params.strategy} --output {output:q}"
        " --max-tokens {params.max_tokens}"


rule train:
    input:
        backbone=backbone_of,
        trunk=trunk_of,
        layers=layers_of,
        gap=gap_of,
    output:
        adapter=f"{RUNS}/{{run}}/adapter/adapter_model.safetensors",
        settings=f"{RUNS}/{{run}}/adapter/adapter_config.json",
        steps=f"{RUNS}/{{run}}/steps.csv",
        run=f"{RUNS}/{{run}}/run.json",
    log:
        f"{LOGS}/4_train/{{run}}.log",
    benchmark:
        f"{OUT}/benchmarks/4_train/{{run}}.tsv"
    conda:
        "../envs/gapinit.yaml"
    resources:
        expected_s=18,
        mem_mb=backbone_memory(3000),
        gpu_mem_mb=resource("gpu_mem_mb"),
        runtime=resource("runtime", 480),
        gpu=1,
    params:
        folder=subpath(output.run, parent=True),
        alpha_per_rank=CONFIG.lora.alpha_per_rank,
        dropout=CONFIG.lora.dropout,
        learning_rate=training_setting("learning_rate"),
        scheduler=training_setting("scheduler"),
        warmup_ratio=training_setting("warmup_ratio"),
        weight_decay=training_setting("weight_decay"),
        max_grad_norm=training_setting("max_grad_norm"),
        batch_size=training_setting("batch_size"),
        gradient_accumulation=training_setting("gradient_accumulation"),
        grouping=grouping_option,
        version=PLAN.version("train"),
    message:
        "Train {wildcards.run}"
    shell:
        "python -m gapinit --log-file {log:q} train --run {wildcards.run:q}"
        " --backbone {input.backbone:q} --trunk {input.trunk:q} --layers {input.layers:q}"
        " --gap {input.gap:q} --output {params.folder:q}"
        " --alpha-per-rank {params.alpha_per_rank} --dropout {params.dropout}"
        " --learning-rate {params.learning_rate} --scheduler {params.scheduler}"
        " --warmup-ratio {params.warmup_ratio} --weight-decay {params.weight_decay}"
        " --max-grad-norm {params.max_grad_norm} --batch-size {params.batch_size}"
        " --gradient-accumulation {params.gradient_accumulation} {params.grouping}"
