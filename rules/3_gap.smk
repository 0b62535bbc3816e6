# Stage 3, gap: from hidden states to gap vectors, SPOT-Gap scores and the choice of layers.
#
# in:   results/<name>/2_states/<backbone>/<dataset>.h5
# out:  results/<name>/3_gap/<backbone>/<calibration>-<size>.h5
#       results/<name>/3_gap/<backbone>/layers.json

GAPS = f"{OUT}/3_gap"


rule gap:
    input:
        states_of,
    output:
        f"{GAPS}/{{backbone}}/{{calibration}}-{{size}}.h5",
    log:
        f"{LOGS}/3_gap/{{backbone}}/{{calibration}}-{{size}}.log",
    benchmark:
        f"{OUT}/benchmarks/3_gap/{{backbone}}/{{calibration}}-{{size}}.tsv"
    conda:
        "../envs/gapinit.yaml"
    resources:
        expected_s=2,
        mem_mb=memory(2000),
        runtime=30,
    params:
        states=lambda wildcards, input: [f"--states={path}" for path in input],
        size=lambda wildcards: wildcards.size,
        heldout=CONFIG.calibration.heldout,
        neighbours=CONFIG.gap.neighbours,
        alpha_semantic=CONFIG.gap.alpha_semantic,
        alpha_geometric=CONFIG.gap.alpha_geometric,
        smoothing=CONFIG.gap.smoothing,
        version=PLAN.version("gap"),
    message:
        "Gap of {wildcards.backbone} from {wildcards.size} pairs, {wildcards.calibration}"
    shell:
        "python -m gapinit --log-file {log:q} gap {params.states:q} --output {output:q}"
        " --size {params.size} --heldout {params.heldout} --neighbours {params.neighbours}"
        " --alpha-semantic {params.alpha_semantic} --alpha-geometric {params.alpha_geometric}"
        " --smoothing {params.smoothing}"


# Layers are selected once, from the default calibration, so that ablations of calibration and
# noise change only the direction.
rule layers:
    input:
        f"{GAPS}/{{backbone}}/{CONFIG.calibration.source}-{CONFIG.calibration.size}.h5",
    output:
        f"{GAPS}/{{backbone}}/layers.json",
    log:
        f"{LOGS}/3_gap/{{backbone}}/layers.log",
    conda:
        "../envs/gapinit.yaml"
    resources:
        expected_s=1,
    params:
        num_layers=layers_setting("num_layers"),
        exclude_bottom=layers_setting("exclude_bottom"),
        version=PLAN.version("gap"),
    message:
        "Layers of {wildcards.backbone}: naive, GG-Safe, all"
    shell:
        "python -m gapinit --log-file {log:q} layers --gap {input:q} --output {output:q}"
        " --num-layers {params.num_layers} --exclude-bottom {params.exclude_bottom}"
