# Stage 5, evaluate: from adapters to captions, answers and scores.
#
# in:   results/<name>/4_train/runs/<run>/adapter/, results/1_data/<dataset>/
# out:  results/<name>/5_evaluate/features/<backbone>/<dataset>.h5
#       results/<name>/5_evaluate/runs/<run>/<dataset>.{predictions,scores}.json

FEATURES = f"{OUT}/5_evaluate/features"
EVALUATIONS = f"{OUT}/5_evaluate/runs"


rule features:
    input:
        backbone=rules.backbone.output,
        manifest=rules.dataset.output.manifest,
    output:
        f"{FEATURES}/{{backbone}}/{{dataset}}.h5",
    log:
        f"{LOGS}/5_evaluate/features/{{backbone}}/{{dataset}}.log",
    benchmark:
        f"{OUT}/benchmarks/5_evaluate/features/{{backbone}}/{{dataset}}.tsv"
    conda:
        "../envs/gapinit.yaml"
    resources:
        expected_s=7,
        mem_mb=backbone_memory(3000),
        gpu_mem_mb=resource("gpu_mem_mb"),
        runtime=resource("runtime", 60),
        gpu=1,
    params:
        version=PLAN.version("predict"),
    message:
        "Image features of {wildcards.dataset}, once for all runs"
    shell:
        "python -m gapinit --log-file {log:q} features --backbone {input.backbone:q}"
        " --manifest {input.manifest:q} --output {output:q} --split test"


rule predict:
    input:
        backbone=backbone_of,
        manifest=rules.dataset.output.manifest,
        features=features_of,
        adapter=adapter_of,
    output:
        f"{EVALUATIONS}/{{run}}/{{dataset}}.predictions.json",
    log:
        f"{LOGS}/5_evaluate/{{run}}/{{dataset}}.predict.log",
    benchmark:
        f"{OUT}/benchmarks/5_evaluate/{{run}}/{{dataset}}.predict.tsv"
    conda:
        "../envs/gapinit.yaml"
    resources:
        expected_s=8,
        mem_mb=backbone_memory(3000),
        gpu_mem_mb=resource("gpu_mem_mb"),
        runtime=resource("runtime", 240),
        gpu=1,
    params:
        adapter=adapter_option,
        num_beams=decoding_setting("num_beams"),
        max_new_tokens=max_new_tokens,
        batch_size=decoding_setting("batch_size"),
        version=PLAN.version("predict"),
    message:
        "Predictions for {wildcards.dataset} by {wildcards.run}"
    shell:
        "python -m gapinit --log-file {log:q} predict --backbone {input.backbone:q}"
        " --manifest {input.manifest:q} --features {input.features:q} {params.adapter:q} --output {output:q}"
        " --num-beams {params.num_beams} --max-new-tokens {params.max_new_tokens}"
        " --batch-size {params.batch_size}"


rule score:
    input:
        references=rules.dataset.output.references,
        predictions=rules.predict.output,
    output:
        f"{EVALUATIONS}/{{run}}/{{dataset}}.scores.json",
    log:
        f"{LOGS}/5_evaluate/{{run}}/{{dataset}}.score.log",
    benchmark:
        f"{OUT}/benchmarks/5_evaluate/{{run}}/{{dataset}}.score.tsv"
    conda:
        "../envs/gapinit.yaml"
    resources:
        expected_s=3,
        mem_mb=memory(2500),
        runtime=60,
    params:
        benchmark=lambda wildcards: PLAN.kind(wildcards.dataset),
        references=score_options,
        version=PLAN.version("score"),
    message:
        "Scores on {wildcards.dataset} of {wildcards.run}"
    shell:
        "python -m gapinit --log-file {log:q} score {params.benchmark} {params.references:q}"
        " --predictions {input.predictions:q} --output {output:q}"
