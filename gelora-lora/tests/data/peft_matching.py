"""Make peft_matching.json: what PEFT 0.21.2 says of rank and alpha of modules under configs with unusual patterns.

    python peft_matching.py > peft_matching.json

A case is {"config": what AdapterConfig reads, "modules": {name: [rank, alpha] or null}}. "all-linear" is not among them:
PEFT resolves it on a model.
"""

import json

from peft import LoraConfig
from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists
from peft.utils.other import get_pattern_key

BERT = ["attention.self.query", "attention.self.key", "attention.output.dense", "intermediate.dense", "output.dense"]
NAMES = [f"{prefix}encoder.layer.{layer}.{m}" for prefix in ("", "bert.") for layer in (0, 1, 2, 10, 11, 21) for m in BERT]
NAMES += ["bert.pooler.dense", "pooler.dense", "classifier", "classifier.dense", "bert.classifier_norm", "score", "query",
          "model.layers.1.mlp.experts.0.down_proj", "model.layers.0.mlp.experts.1.down_proj", "layers.1.down_proj",
          "h.1.down_proj", "lm_head", "xquery", "a.b+c(1).query", "a.bbc1.query"]

CONFIGS = [
    # lists: full names, ends from a dot on, and what only looks like an end
    dict(target_modules=["query", "output.dense"]),
    dict(target_modules=["classifier", "uery", "layer.1.attention.self.key", "bert.pooler.dense"]),
    dict(target_modules=[]),
    # regular expressions match the whole name
    dict(target_modules=r".*\.layer\.1.*"),
    dict(target_modules=r"encoder\.layer"),
    dict(target_modules=r"query|.*\.key"),
    dict(target_modules=r".*layer\.(\d)\1\..*(?<!output\.)dense"),
    dict(target_modules=r"(?i).*QUERY"),
    dict(target_modules=r"(?P<root>bert)\.(?:(?!pooler).)*"),
    # what narrows targets
    dict(target_modules=["dense"], exclude_modules=["output.dense"]),
    dict(target_modules=["dense"], exclude_modules=r".*layer\.1.*"),
    dict(target_modules=["dense", "query"], modules_to_save=["classifier", "pooler"]),
    dict(target_modules=r".*", modules_to_save=["classifier", "layer.1"]),
    dict(target_modules=["query", "down_proj"], layers_to_transform=1),
    dict(target_modules=["query", "down_proj", "encoder.layer.0.attention.self.query"], layers_to_transform=[1, 21]),
    dict(target_modules=["query", "down_proj"], layers_to_transform=[]),
    dict(target_modules=["query", "down_proj"], layers_to_transform=[1, 10], layers_pattern="layers"),
    dict(target_modules=["query", "down_proj"], layers_to_transform=[1, 10], layers_pattern=["h", "layer"]),
    dict(target_modules=["query", "down_proj"], layers_to_transform=[1, 10], layers_pattern=[]),
    # rank and alpha: separate, the first key that matches, from a dot to the end
    dict(target_modules=r".*", rank_pattern={"layer.1.attention.self.query": 3}, alpha_pattern={"query": 5}),
    dict(target_modules=r".*", rank_pattern={"query": 3, ".*layer.1.*query": 4}, alpha_pattern={".*layer.1.*query": 2.5, "query": 5}),
    dict(target_modules=r".*", rank_pattern={"^encoder.*": 3, "bert.encoder.layer.1": 4, r"layer\.1\..*": 6}),
    dict(target_modules=r".*", rank_pattern={r"layer\.(1|2)\..*": 3, r".*layer\.\d\d\..*": 4, "dense|score": 5}),
    dict(target_modules=r".*", rank_pattern={"uery": 3, "": 4, "self": 5}, alpha_pattern={".": 3, "[a-z]+": 7}),
    dict(target_modules=r".*", rank_pattern={r"^(bert\.)?encoder\.layer\.1\.attention\.self\.query$": 3}),
    dict(target_modules=r".*", rank_pattern={r"a.b+c(1).query": 3, r"a\.b\+c\(1\)\.query": 4}),
    dict(target_modules=r".*", alpha_pattern={r"(?:.*\.)(\d)\3\.attention\.self\.query": 9}),
]


def module(config, name):
    found = check_target_module_exists(config, name)
    if not found or isinstance(found, _ExcludedModule):
        return None
    rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)
    return [rank, config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), name), config.lora_alpha)]


def main():
    cases = []
    for given in CONFIGS:
        config = LoraConfig(**json.loads(json.dumps(given)))
        cases.append(json.dumps({"config": given, "modules": {name: module(config, name) for name in NAMES}}))
    print("[\n" + ",\n".join(cases) + "\n]")


if __name__ == "__main__":
    main()
