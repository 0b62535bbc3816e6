"""The version of each stage: raise it when an edit changes the stage's numbers.

Every rule has its stage's version among its parameters, because Snakemake does not see edits of
imported modules. Raising a version reruns that stage and everything downstream.
"""

VERSIONS = {
    "data": 2,
    "backbone": 2,
    "states": 2,
    "gap": 3,
    "trunk": 4,
    "train": 3,
    "predict": 4,
    "score": 2,
    "tables": 4,
    "figures": 2,
    "report": 4,
}
