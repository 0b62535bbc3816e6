# Stage 2, states: from calibration pairs to pooled hidden states of every decoder layer.
#
# in:   results/1_data/<dataset>/manifest.json, results/1_backbones/<backbone>/
# out:  results/<name>/2_states/<backbone>/<dataset>.h5   (L, N, d), vision and text
#
# One extraction serves every calibration size: smaller sets are the first pairs of the largest.

STATES = f"{OUT}/2_states"


rule states:
    input:
        backbone=rules.backbone.output,
        manifest=rules.dataset.output.manifest,
    output:
        f"{STATES}/{{backbone}}/{{dataset}}{part_of('states')}.h5",
    log:
        f"{LOGS}/2_states/{{backbone}}/{{dataset}}{part_of('states')}.log",
    cache: "omit-software"
    conda:
        "../envs/gapinit.yaml"
    resources:
        expected_s=9,
        mem_mb=backbone_memory(3000),
        gpu_mem_mb=resource("gpu_mem_mb"),
        runtime=resource("runtime", 60),
        gpu=1,
    params:
        pairs=CONFIG.calibration.pairs(),
        seed=CONFIG.calibration.seed,
        max_caption_tokens=training_setting("max_caption_tokens"),
        shard=shard_option,
        version=PLAN.version("states"),
    message:
        "States of {wildcards.backbone} on {wildcards.dataset}"
    shell:
        "python -m gapinit --log-file {log:q} states --backbone {input.backbone:q}"
        " --manifest {input.manifest:q} --output {output:q} --pairs {params.pairs}"
        " --seed {params.seed} --max-caption-tokens {params.max_caption_tokens} {params.shard}"
