"""The version of each stage: raise it when an edit changes the stage's numbers.

Every rule has its stage's version as a parameter, because Snakemake does not detect edits of
imported modules. A raised version reruns that stage and everything downstream.
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
