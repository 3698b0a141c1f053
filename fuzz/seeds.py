"""Make seeds/: small files of every format, from which the fuzz targets start. This script does not make the files
named find-*: each of them once broke a reader.

    python seeds.py        (Python 3.11, numpy, pyarrow 26.0)
"""

import io
import json
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent / "fixtures"
CHAT = """{% for m in messages %}
{% if loop.first and m['role'] != 'system' %}<|s|>system
{% endif %}
<|{{ m.role }}|>{{ m['content'].strip() | trim }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}<|assistant|>{% endif %}"""
ROWS = [("a good film", 1), ("a dull \"plot\", told badly", 0), ("naïve\nbut fun", 1)]


def seed(target, name, data):
    folder = HERE / "seeds" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def gguf(model):
    """A Llama or Qwen of one layer and 32 channels with its tokenizer, in F32, F16, Q8_0 and Q4_0."""
    c, f, heads, kinds = 32, 32, 2, {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8}
    text = lambda s: struct.pack("<Q", len(s.encode())) + s.encode()
    arrays = lambda kind, values: struct.pack("<IIQ", 9, kind, len(values)) + b"".join(values)
    u32, f32 = lambda v: struct.pack("<II", 4, v), lambda v: struct.pack("<If", 6, v)
    string, flag = lambda s: struct.pack("<I", 8) + text(s), lambda v: struct.pack("<IB", 7, v)
    llama = model == "llama"
    tokens = ["<unk>", "<s>", "</s>", "▁", "t", "h", "e", "th", "▁th"] if llama else ["<s>", "t", "h", "e", "Ġ",
                                                                                      "th", "the", "Ġthe"]
    arch = model
    keys = {
        "general.architecture": string(arch), f"{arch}.block_count": u32(1), f"{arch}.context_length": u32(64),
        f"{arch}.embedding_length": u32(c), f"{arch}.feed_forward_length": u32(f),
        f"{arch}.attention.head_count": u32(heads),
        f"{arch}.attention.head_count_kv": u32(1), f"{arch}.attention.layer_norm_rms_epsilon": f32(1e-5),
        f"{arch}.rope.freq_base": f32(10000.0), f"{arch}.rope.dimension_count": u32(c // heads),
        "tokenizer.ggml.model": string("llama" if llama else "gpt2"), "tokenizer.ggml.pre": string("qwen2"),
        "tokenizer.ggml.tokens": arrays(8, [text(t) for t in tokens]),
        "tokenizer.ggml.token_type": arrays(5, [struct.pack("<i", 3 if t[0] == "<" else 1) for t in tokens]),
        "tokenizer.ggml.scores": arrays(6, [struct.pack("<f", -i) for i in range(len(tokens))]),
        "tokenizer.ggml.merges": arrays(8, [text("t h"), text("th e"), text("Ġ the")]),
        "tokenizer.ggml.bos_token_id": u32(1 if llama else 0), "tokenizer.ggml.eos_token_id": u32(2),
        "tokenizer.ggml.add_bos_token": flag(1), "tokenizer.chat_template": string(CHAT),
    }
    rng = np.random.default_rng(0)
    tensors = [("token_embd.weight", (len(tokens), c), "F32"), ("output_norm.weight", (c,), "F32"),
               ("blk.0.attn_norm.weight", (c,), "F32"),
               ("blk.0.ffn_norm.weight", (c,), "F32"), ("blk.0.attn_q.weight", (c, c), "Q8_0"),
               ("blk.0.attn_k.weight", (c // 2, c), "F16"),
               ("blk.0.attn_v.weight", (c // 2, c), "Q4_0"), ("blk.0.attn_output.weight", (c, c), "Q4_0"),
               ("blk.0.ffn_gate.weight", (f, c), "Q4_0"), ("blk.0.ffn_up.weight", (f, c), "Q8_0"),
               ("blk.0.ffn_down.weight", (c, f), "Q4_0")]
    if not llama:
        tensors += [(f"blk.0.attn_{p}.bias", (n,), "F32") for p, n in [("q", c), ("k", c // 2), ("v", c // 2)]]
    infos, data = b"", b""
    for name, shape, kind in tensors:
        n = int(np.prod(shape))
        values = rng.normal(0, 0.1, n)
        data += b"\0" * (-len(data) % 32)
        infos += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", d) for d in reversed(shape))
        infos += struct.pack("<IQ", kinds[kind], len(data))
        if kind in ("F32", "F16"):
            data += values.astype("<f4" if kind == "F32" else "<f2").tobytes()
        else:
            block = struct.pack("<e", 0.01)
            bits = rng.integers(0, 256, (n // 32, 32 if kind == "Q8_0" else 16), dtype=np.uint8)
            data += b"".join(block + row.tobytes() for row in bits)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(
        text(k) + v for k, v in keys.items()) + infos
    return head + b"\0" * (-len(head) % 32) + data


def fake_torch():
    """Modules with what the pickle of a checkpoint names."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for kind in ("FloatStorage", "HalfStorage", "LongStorage"):
        setattr(torch, kind, type(kind, (), {"__module__": "torch", "__qualname__": kind}))

    def rebuild(*arguments):
        return arguments

    rebuild.__module__ = "torch._utils"
    rebuild.__qualname__ = rebuild.__name__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = rebuild
    torch._utils = utils
    sys.modules.update({"torch": torch, "torch._utils": utils})
    return torch


class Tensor:
    def __init__(self, key, kind, values, shape, stride, offset=0):
        self.key, self.kind, self.values = key, kind, values
        self.shape, self.stride, self.offset = shape, stride, offset

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (Storage(self), self.offset, self.shape, self.stride,
                                                                False, OrderedDict())


class Storage:
    def __init__(self, tensor):
        self.tensor = tensor


class Pickler(pickle.Pickler):
    legacy = False

    def persistent_id(self, found):
        if not isinstance(found, Storage):
            return None
        t = found.tensor
        return ("storage", t.kind, t.key, "cpu", len(t.values)) + ((None,) if self.legacy else ())


class Legacy(Pickler):
    legacy = True


def dumps(pickler, found):
    out = io.BytesIO()
    pickler(out, protocol=2).dump(found)
    return out.getvalue()


def torch_files():
    torch = fake_torch()
    w = np.arange(6, dtype="<f4")
    state = OrderedDict([("w", Tensor("0", torch.FloatStorage, w, (2, 3), (3, 1))),
                         ("t", Tensor("0", torch.FloatStorage, w, (3, 2), (1, 3))),
                         ("h", Tensor("1", torch.HalfStorage, w[:2].astype("<f2"), (2,), (1,)))])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), dumps(Pickler, state))
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), "little")
        archive.writestr(zipfile.ZipInfo("archive/data/0"), w.tobytes())
        archive.writestr(zipfile.ZipInfo("archive/data/1"), w[:2].astype("<f2").tobytes())
        archive.writestr(zipfile.ZipInfo("archive/version"), "3\n")
    legacy = dumps(pickle.Pickler, 0x1950A86A20F9469CFC6C) + dumps(pickle.Pickler, 1001)
    legacy += dumps(pickle.Pickler, {"protocol_version": 1001, "little_endian": True,
                                     "type_sizes": {"short": 2, "int": 4, "long": 4}})
    legacy += dumps(Legacy, state) + dumps(pickle.Pickler, ["0", "1"])
    legacy += struct.pack("<Q", 6) + w.tobytes() + struct.pack("<Q", 2) + w[:2].astype("<f2").tobytes()
    return {"zip": out.getvalue(), "legacy": legacy}


def safetensors(tensors):
    kinds = {"f4": "F32", "f2": "F16", "f8": "F64", "i8": "I64"}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, values in tensors.items():
        begin = len(data)
        data += values.tobytes()
        header[name] = {"dtype": kinds[values.dtype.str[1:]], "shape": list(values.shape),
                        "data_offsets": [begin, len(data)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def tokenizers():
    spm = (FIXTURES / "tokenizers/spm/spm.model").read_bytes()
    seed("sentencepiece", "unigram", spm)
    bert = json.loads((FIXTURES / "tiny-bert/tokenizer.json").read_text())
    seed("tokenizer", "wordpiece", json.dumps(bert, ensure_ascii=False).encode())
    added = [{"id": 0, "content": "<unk>", "single_word": False, "lstrip": False, "rstrip": True,
              "normalized": False, "special": True}]
    piece = lambda t: {"SpecialToken": {"id": t, "type_id": 0}}
    template = {"type": "TemplateProcessing", "single": [piece("<s>"), {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [piece("<s>"), {"Sequence": {"id": "A", "type_id": 0}},
                         {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    unigram = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
               "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"},
                                                                  {"type": "Replace", "pattern": {"Regex": " {2,}"},
                                                                   "content": " "}]},
               "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
               "post_processor": template, "decoder": {"type": "Metaspace", "replacement": "▁",
                                                       "prepend_scheme": "always", "split": True},
               "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": False,
                         "vocab": [["<unk>", 0.0], ["<s>", 0.0], ["▁the", -2.0], ["▁", -3.0], ["film", -4.0],
                                   ["e", -5.0], ["i", -6.0], ["s", -6.5]]}}
    seed("tokenizer", "unigram", json.dumps(unigram, ensure_ascii=False).encode())
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}|\s+(?!\S)|\s+"}, "behavior": "Isolated",
             "invert": False}
    bpe = {"version": "1.0", "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst",
                                            "stride": 0},
           "padding": {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                       "pad_type_id": 0, "pad_token": "<unk>"},
           "added_tokens": added, "normalizer": {"type": "NFC"},
           "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split,
                                                                   {"type": "Digits", "individual_digits": True},
                                                                   byte_level]},
           "post_processor": {"type": "RobertaProcessing", "sep": ["t", 1], "cls": ["h", 2], "trim_offsets": True,
                              "add_prefix_space": False},
           "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"},
                                                        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
                                                        byte_level]},
           "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                     "end_of_word_suffix": None,
                     "fuse_unk": False, "byte_fallback": True, "ignore_merges": False,
                     "vocab": {"<unk>": 0, "t": 1, "h": 2, "e": 3, "Ġ": 4, "th": 5, "the": 6, "Ġthe": 7, "<0x0A>": 8},
                     "merges": [["t", "h"], ["th", "e"], ["Ġ", "the"]]}}
    seed("tokenizer", "bpe", json.dumps(bpe, ensure_ascii=False).encode())


def tables():
    seed("csv", "rows.csv", b'text,label\na good film,1\n"a dull ""plot"", told badly",0\n\n"two\nlines",1\n')
    seed("csv", "points.csv", b"x,y\r\n1,-2.5\r\n3,4e-3\r\n")
    objects = [{"text": text, "label": label} for text, label in ROWS]
    chat = {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]}
    seed("json", "list.json", json.dumps(objects, ensure_ascii=False).encode())
    seed("json", "nested.json", json.dumps([chat, {**chat, "x": [1, None, {"y": 1e300}]}]).encode())
    seed("jsonl", "rows.jsonl", "\n".join(json.dumps(o, ensure_ascii=False) for o in objects).encode())
    seed("jsonl", "chat.jsonl", json.dumps(chat).encode() + b"\n\n" + json.dumps(chat).encode())
    table = pa.table({"text": [t for t, _ in ROWS], "label": pa.array([l for _, l in ROWS], pa.int8())})
    points = pa.table({"x": pa.array([1.5, 2.5], pa.float32()), "d": pa.array([1, None], pa.timestamp("ms"))})
    lists = pa.table({"e": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32())),
                      "s": pa.array([{"a": 1}, {"a": None}])})
    for name, found, codec in [("text-snappy", table, "snappy"), ("text-brotli", table, "brotli"),
                               ("text-lz4", table, "lz4"), ("text-zstd", table, "zstd"),
                               ("text-gzip", table, "gzip"), ("points", points, "none"), ("lists", lists, "none")]:
        out = io.BytesIO()
        pq.write_table(found, out, compression=codec, store_schema=False)
        seed("parquet", name, out.getvalue())
    out = io.BytesIO()
    np.save(out, np.arange(6, dtype="<f4").reshape(2, 3))
    seed("npy", "c", out.getvalue())
    seed("npy", "version-2", b"\x93NUMPY\x02\0" + struct.pack("<I", 58)
         + b"{'descr': '<f2', 'fortran_order': True, 'shape': (2, 2), }" + bytes(8))
    for name, save in [("stored", np.savez), ("deflated", np.savez_compressed)]:
        out = io.BytesIO()
        save(out, s_1=np.arange(6, dtype="<f8").reshape(2, 3), s_2=np.arange(4, dtype=">i2").reshape(4, 1),
             b=np.ones(3))
        seed("npz", name, out.getvalue())


def main():
    for old in (HERE / "seeds").glob("*/*"):
        if not old.name.startswith("find-"):
            old.unlink()
    seed("gguf", "llama", gguf("llama"))
    seed("gguf", "qwen2", gguf("qwen2"))
    for name, data in torch_files().items():
        seed("torch", name, data)
    seed("safetensors", "two", safetensors({"a": np.ones((2, 3), "<f4"), "b": np.ones(2, "<f8"),
                                            "c.position_ids": np.ones(1, "<i8"), "h": np.ones((), "<f2")}))
    config = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2, "lora_alpha": 4, "lora_dropout": 0.1,
              "bias": "none", "target_modules": ["query"],
              "rank_pattern": {r"0\.query": 1}, "alpha_pattern": {r"0\.query": 2}, "modules_to_save": ["classifier"],
              "layers_to_transform": None}
    a = {f"base_model.model.l.{i}.query.lora_{s}.weight": np.ones((r, 4) if s == "A" else (4, r), "<f4") for i,
         r in [(0, 1), (1, 2)] for s in "AB"}
    weights = safetensors({**a, "base_model.model.classifier.bias": np.ones(2, "<f4")})
    seed("adapter", "list", json.dumps(config).encode() + b"\0" + weights)
    config["target_modules"] = r".*l\.\d+\.query"
    seed("adapter", "pattern", json.dumps(config).encode() + b"\0" + weights)
    tokenizers()
    seed("template", "chatml", CHAT.encode())
    seed("template", "raise",
         b"{%- if messages[0]['role'] == 'system' -%}{%- set s = messages[0].content -%}"
         b"{%- else -%}{{ raise_exception('no') }}{%- endif -%}"
         b"{% generation %}{{ s | upper | replace('A', 'b') }}{% endgeneration %}"
         b"{{ messages[:1] | map(attribute='role') | join(', ') }}{% for i in range(3) %}{{ i }}{% endfor %}")
    seed("template", "macro",
         b"{% macro f(x, n=2) %}{{ x * n }}{% endmacro %}{% set ns = namespace(n=0) %}"
         b"{% for m in messages %}{{ f(m.content) }}"
         b"{% if m.role == 'assistant' %}{% set ns.n = ns.n + 1 %}{% endif %}"
         b"{{ ns.n ~ m.role.split('s')[0].title()[::-1] | tojson }}"
         b"{% for x in [1, 2, 3] %}{% if x > 1 %}{% break %}{% endif %}"
         b"{{ loop.cycle('a', 'b') }}{% endfor %}{% endfor %}")
    tables()


main()
