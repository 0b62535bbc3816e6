# Stage 5, evaluate: from adapters to captions and scores.
#
# in:   results/<name>/4_train/runs/<run>/adapter/, results/1_data/<dataset>/
# out:  results/<name>/5_evaluate/features/<backbone>/<dataset>.h5
#       results/<name>/5_evaluate/runs/<run>/<dataset>.{predictions,scores}.json

FEATURES = f"{OUT}/5_evaluate/features"
EVALUATIONS = f"{OUT}/5_evaluate/runs"


rule features:
    message:
        "Image features of {wildcards.dataset}, once for all runs"
    input:
        backbone=rules.backbone.output.config,
        manifest=rules.dataset.output.manifest,
    output:
        f"{FEATURES}/{{backbone}}/{{dataset}}.h5",
    params:
        backbone=subpath(input.backbone, parent=True),
        version=PLAN.version("predict"),
    log:
        f"{LOGS}/5_evaluate/features/{{backbone}}/{{dataset}}.log",
    benchmark:
        f"{OUT}/benchmarks/5_evaluate/features/{{backbone}}/{{dataset}}.tsv"
    conda:
        "../envs/gapinit.yaml"
    resources:
        mem_mb=3000,
        runtime=60,
        gpu=1,
    shell:
        "python -m gapinit --log-file {log:q} features --backbone {params.backbone:q}"
        " --manifest {input.manifest:q} --output {output:q} --split test"


def features_of(wildcards):
    """Image features of the dataset that a run is evaluated on."""
    return f"{FEATURES}/{Run.parse(wildcards.run).backbone}/{wildcards.dataset}.h5"


def adapter_of(wildcards):
    """A run's adapter; nothing for the backbone as it is."""
    if not Run.parse(wildcards.run).trained:
        return []
    return f"{RUNS}/{wildcards.run}/adapter/adapter_model.safetensors"


rule predict:
    message:
        "Captions for {wildcards.dataset} by {wildcards.run}"
    input:
        backbone=backbone_of,
        features=features_of,
        adapter=adapter_of,
    output:
        f"{EVALUATIONS}/{{run}}/{{dataset}}.predictions.json",
    params:
        backbone=subpath(input.backbone, parent=True),
        adapter=lambda wildcards, input: [
            f"--adapter={Path(path).parent}" for path in input.get("adapter", [])
        ] if not isinstance(input.get("adapter"), str) else [f"--adapter={Path(input.adapter).parent}"],
        num_beams=CONFIG.decoding.num_beams,
        max_new_tokens=CONFIG.decoding.max_new_tokens,
        batch_size=CONFIG.decoding.batch_size,
        version=PLAN.version("predict"),
    log:
        f"{LOGS}/5_evaluate/{{run}}/{{dataset}}.predict.log",
    benchmark:
        f"{OUT}/benchmarks/5_evaluate/{{run}}/{{dataset}}.predict.tsv"
    conda:
        "../envs/gapinit.yaml"
    resources:
        mem_mb=3000,
        runtime=240,
        gpu=1,
    shell:
        "python -m gapinit --log-file {log:q} predict --backbone {params.backbone:q}"
        " --features {input.features:q} {params.adapter:q} --output {output:q}"
        " --num-beams {params.num_beams} --max-new-tokens {params.max_new_tokens}"
        " --batch-size {params.batch_size}"


rule score:
    message:
        "Scores on {wildcards.dataset} of {wildcards.run}"
    input:
        references=rules.dataset.output.references,
        predictions=rules.predict.output,
    output:
        f"{EVALUATIONS}/{{run}}/{{dataset}}.scores.json",
    params:
        metrics=lambda wildcards: PLAN.scorers(wildcards.dataset),
        version=PLAN.version("score"),
    log:
        f"{LOGS}/5_evaluate/{{run}}/{{dataset}}.score.log",
    benchmark:
        f"{OUT}/benchmarks/5_evaluate/{{run}}/{{dataset}}.score.tsv"
    conda:
        "../envs/gapinit.yaml"
    resources:
        mem_mb=2500,
        runtime=60,
    shell:
        "python -m gapinit --log-file {log:q} score captions --references {input.references:q}"
        " --predictions {input.predictions:q} --output {output:q} --metrics {params.metrics}"
