# Stage 4, train: from gap vectors and cached trunks to one adapter a run.
#
# in:   results/<name>/3_gap/, results/1_backbones/<backbone>/, results/1_data/<dataset>/
# out:  results/<name>/4_train/trunk/<backbone>/<dataset>/<layers>.h5
#       results/<name>/4_train/runs/<run>/{adapter/,steps.csv,run.json}
#
# <run> spells the run's factors (gapinit/runs.py); a run that several tables ask for is made once.

from gapinit.runs import Run

TRUNKS = f"{OUT}/4_train/trunk"
RUNS = f"{OUT}/4_train/runs"


rule trunk:
    message:
        "Trunk of {wildcards.backbone} on {wildcards.dataset} below the {wildcards.layers} layers"
    input:
        backbone=rules.backbone.output.config,
        manifest=rules.dataset.output.manifest,
        layers=rules.layers.output,
    output:
        f"{TRUNKS}/{{backbone}}/{{dataset}}/{{layers}}.h5",
    params:
        backbone=subpath(input.backbone, parent=True),
        max_caption_tokens=CONFIG.training.max_caption_tokens,
        version=PLAN.version("trunk"),
    log:
        f"{LOGS}/4_train/trunk/{{backbone}}/{{dataset}}/{{layers}}.log",
    benchmark:
        f"{OUT}/benchmarks/4_train/trunk/{{backbone}}/{{dataset}}/{{layers}}.tsv"
    conda:
        "../envs/gapinit.yaml"
    resources:
        mem_mb=3000,
        runtime=240,
        gpu=1,
    shell:
        "python -m gapinit --log-file {log:q} trunk --backbone {params.backbone:q}"
        " --manifest {input.manifest:q} --layers {input.layers:q}"
        " --strategy {wildcards.layers} --output {output:q}"
        " --max-caption-tokens {params.max_caption_tokens}"


def trunk_of(wildcards):
    """The trunk below the layers that a run adapts."""
    run = Run.parse(wildcards.run)
    return f"{TRUNKS}/{run.backbone}/{run.dataset}/{run.layers}.h5"


def gap_of(wildcards):
    """A run's gap: its direction, or for methods without one what B is compared with."""
    run = Run.parse(wildcards.run)
    return f"{GAPS}/{run.backbone}/{PLAN.gap_name(run)}.h5"


def layers_of(wildcards):
    """The layer choice of a run's backbone."""
    return f"{GAPS}/{Run.parse(wildcards.run).backbone}/layers.json"


def backbone_of(wildcards):
    """The backbone folder's marker file."""
    return f"{BACKBONES}/{Run.parse(wildcards.run).backbone}/config.json"


rule train:
    message:
        "Train {wildcards.run}"
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
    params:
        backbone=subpath(input.backbone, parent=True),
        folder=subpath(output.run, parent=True),
        alpha_per_rank=CONFIG.lora.alpha_per_rank,
        dropout=CONFIG.lora.dropout,
        learning_rate=CONFIG.training.learning_rate,
        scheduler=CONFIG.training.scheduler,
        warmup_ratio=CONFIG.training.warmup_ratio,
        weight_decay=CONFIG.training.weight_decay,
        max_grad_norm=CONFIG.training.max_grad_norm,
        batch_size=CONFIG.training.batch_size,
        gradient_accumulation=CONFIG.training.gradient_accumulation,
        version=PLAN.version("train"),
    log:
        f"{LOGS}/4_train/{{run}}.log",
    benchmark:
        f"{OUT}/benchmarks/4_train/{{run}}.tsv"
    conda:
        "../envs/gapinit.yaml"
    resources:
        mem_mb=3000,
        runtime=480,
        gpu=1,
    shell:
        "python -m gapinit --log-file {log:q} train --run {wildcards.run:q}"
        " --backbone {params.backbone:q} --trunk {input.trunk:q} --layers {input.layers:q}"
        " --gap {input.gap:q} --output {params.folder:q}"
        " --alpha-per-rank {params.alpha_per_rank} --dropout {params.dropout}"
        " --learning-rate {params.learning_rate} --scheduler {params.scheduler}"
        " --warmup-ratio {params.warmup_ratio} --weight-decay {params.weight_decay}"
        " --max-grad-norm {params.max_grad_norm} --batch-size {params.batch_size}"
        " --gradient-accumulation {params.gradient_accumulation}"
