"""The same work in PyTorch, transformers and PEFT on a CUDA device: one JSON object a line, as `cargo xtask bench` prints.

    python torch_gpu.py two-nn --n 20000 --d 768
    python torch_gpu.py lora --tokens 8192 --d-in 4096 --d-out 4096 --r 16
    python torch_gpu.py hidden --model DIR --data FILE.jsonl --samples 2000 --batch 64
    python torch_gpu.py train --model DIR --data FILE.jsonl --steps 40 --batch 128
    python torch_gpu.py product
    python torch_gpu.py causal --model DIR --batch 8 --length 512 --r 16 --steps 8

It also makes models of random weights, whose times are those of trained ones, and says how long gelora's steps took:

    python torch_gpu.py model --shape minilm|llama-1b|llama-8b --tokenizer DIR --out DIR [--then PROGRAM ARGUMENTS ...]
    python torch_gpu.py steps --profile FILE.json
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

import torch

START = time.perf_counter()
# What f32 means has to be the same on both sides: no TF32.
torch.backends.cuda.matmul.allow_tf32 = False


def emit(bench, params, times_ms, **extra):
    line = {"bench": bench, "params": params, "ms": round(statistics.median(times_ms), 4),
            "min_ms": round(min(times_ms), 4), **extra}
    print(json.dumps(line), flush=True)


def timed(run, repeats):
    """Milliseconds a call; a sample is as many calls as last 10 ms, with one wait at its end."""
    def sample(calls):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(calls):
            run()
        torch.cuda.synchronize()
        return (time.perf_counter() - began) * 1e3 / calls
    sample(2)
    calls = max(1, min(1000, int(10 / sample(1)) + 1))
    return [sample(calls) for _ in range(repeats)]


def two_nn(args):
    points = torch.randn(args.n, args.d, device="cuda")

    def nearest():
        squares = (points * points).sum(1)
        chunks = []
        for first in range(0, args.n, 4096):
            chunk = slice(first, first + 4096)
            distances = squares[chunk, None] + squares[None] - 2 * points[chunk] @ points.T
            chunks.append(distances.clamp_min_(0).topk(3, largest=False).values)
        found = torch.cat(chunks).sqrt()
        return (found[:, 2] / found[:, 1]).log().sum().item()

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    times = timed(nearest, args.repeats)
    extra = (torch.cuda.max_memory_allocated() - before) / 1e6
    emit("two-nn/torch-chunked", {"n": args.n, "d": args.d}, times, device_mb_beside_points=round(extra, 1))


def lora(args):
    from peft.tuners.lora import Linear, LoraConfig

    for dtype, name in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
        base = torch.nn.Linear(args.d_in, args.d_out).requires_grad_(False)
        config = LoraConfig(r=args.r, lora_alpha=2 * args.r, lora_dropout=0.0)
        layer = Linear(base, "default", config=config, r=args.r, lora_alpha=2 * args.r)
        torch.nn.init.normal_(layer.lora_B["default"].weight)
        layer = layer.to("cuda", dtype)
        x = torch.randn(args.tokens, args.d_in, device="cuda", dtype=dtype, requires_grad=True)
        dy = torch.randn(args.tokens, args.d_out, device="cuda", dtype=dtype)
        params = {"tokens": args.tokens, "in": args.d_in, "out": args.d_out, "r": args.r, "dtype": name}

        def base_only():
            with torch.no_grad():
                base(x)

        def forward():
            with torch.no_grad():
                layer(x)

        def both():
            x.grad = None
            layer.zero_grad(set_to_none=True)
            layer(x).backward(dy)

        base.to("cuda", dtype)
        emit("lora/base-linear", params, timed(base_only, args.repeats))
        emit("lora/forward", params, timed(forward, args.repeats))
        emit("lora/forward+backward", params, timed(both, args.repeats))


def product(args):
    for dtype, name in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
        a, b = (torch.randn(args.size, args.size, device="cuda", dtype=dtype) for _ in range(2))
        times = timed(lambda: a @ b.T, args.repeats)
        gflops = 2 * args.size**3 / statistics.median(times) / 1e6
        emit("product/cublas", {"size": args.size, "dtype": name}, times, gflops=round(gflops, 1))


def texts(row):
    for name in ("text", "sentence"):
        if name in row:
            return (row[name],)
    return (row["sentence1"], row["sentence2"])


def tokenised(tokenizer, rows, max_length):
    columns = [list(column) for column in zip(*map(texts, rows))]
    return tokenizer(*columns, padding=True, truncation=True, max_length=max_length, return_tensors="pt").to("cuda")


def read(path, count=None):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file][:count]


def hidden(args):
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(args.model), AutoModel.from_pretrained(args.model).eval().cuda()
    rows, points = read(args.data, args.samples), []
    with torch.no_grad():
        for first in (0, args.batch):
            model(**tokenised(tokenizer, rows[first:first + args.batch], args.max_length), output_hidden_states=True)
        torch.cuda.synchronize()
        began = time.perf_counter()
        for first in range(0, len(rows), args.batch):
            batch = tokenised(tokenizer, rows[first:first + args.batch], args.max_length)
            states = model(**batch, output_hidden_states=True).hidden_states
            mask = batch["attention_mask"][..., None].float()
            points.append([((state * mask).sum(1) / mask.sum(1)).cpu() for state in states])
    ms = (time.perf_counter() - began) * 1e3
    params = {"samples": len(rows), "batch": args.batch, "layers": len(points[0]), "dtype": "f32"}
    emit("hidden", params, [ms], examples_per_s=round(len(rows) / ms * 1e3, 1))


def train(args):
    """PEFT as its users run it: f32; bf16 by autocast; the model itself in bf16 with fused AdamW; the same compiled."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer, rows = AutoTokenizer.from_pretrained(args.model), read(args.data)
    labels = sorted({row["label"] for row in rows})
    number = {label: index for index, label in enumerate(labels)}
    for name in args.dtypes.split(","):
        model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=len(labels))
        whole = name in ("bf16-model", "bf16-compiled")
        config = LoraConfig(task_type="SEQ_CLS", r=args.rank, lora_alpha=2 * args.rank, lora_dropout=0.0,
                            target_modules=r".*attention\.(self\.(query|key|value)|output\.dense)")
        model = get_peft_model(model, config).to("cuda", torch.bfloat16 if whole else torch.float32).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=5e-4, fused=whole)
        run = torch.compile(model, dynamic=True) if name == "bf16-compiled" else model
        times, losses, first_step = [], [], None
        for step in range(args.steps):
            batch_rows = [rows[(step * args.batch + i) % len(rows)] for i in range(args.batch)]
            began = time.perf_counter()
            batch = tokenised(tokenizer, batch_rows, args.max_length)
            batch["labels"] = torch.tensor([number[row["label"]] for row in batch_rows], device="cuda")
            with torch.autocast("cuda", torch.bfloat16, enabled=name == "bf16"):
                loss = run(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            times.append((time.perf_counter() - began) * 1e3)
            first_step = first_step or time.perf_counter() - START
        params = {"steps": args.steps, "batch": args.batch, "dtype": name, "max_length": args.max_length}
        emit("train-step", params, times[5:] or times, process_start_to_first_step_s=round(first_step, 2),
             loss_first=round(losses[0], 4), loss_last10=round(sum(losses[-10:]) / len(losses[-10:]), 4))


def causal(args):
    """A language model in bf16 with adapters on attention, SDPA and fused AdamW, on random tokens."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16, attn_implementation="sdpa")
    config = LoraConfig(task_type="CAUSAL_LM", r=args.r, lora_alpha=2 * args.r, lora_dropout=0.0,
                        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    vocabulary = model.config.vocab_size
    model = get_peft_model(model, config).to("cuda", torch.bfloat16).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
    times = []
    torch.cuda.reset_peak_memory_stats()
    for _ in range(args.steps):
        ids = torch.randint(vocabulary, (args.batch, args.length), device="cuda")
        torch.cuda.synchronize()
        began = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        times.append((time.perf_counter() - began) * 1e3)
    params = {"batch": args.batch, "length": args.length, "r": args.r, "steps": args.steps}
    emit("causal-step", params, times[2:] or times, peak_gb=round(torch.cuda.max_memory_allocated() / 1e9, 2),
         tokens_per_s=round(args.batch * args.length / statistics.median(times[2:] or times) * 1e3))


def steps(args):
    """Gelora's steps from what `--profile=FILE` wrote; the last one is not waited for by the next."""
    with open(args.profile, encoding="utf-8") as file:
        all_steps = json.load(file)["steps"]
    middle = all_steps[2:-1] or all_steps
    times = [step["ms"] for step in middle]
    tokens = statistics.median(step["tokens"] for step in middle)
    emit("causal-step", {"steps": len(all_steps), "tokens": tokens}, times,
         tokens_per_s=round(tokens / statistics.median(times) * 1e3))


def model(args):
    """A model of a known shape with random weights, beside a BERT's tokenizer; the same weights at every call."""
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if args.shape == "minilm":
        config = BertConfig(vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
                            intermediate_size=1536, max_position_embeddings=512)
        made = BertModel(config)
    else:
        sizes = {"llama-1b": (2048, 8192, 16, 32), "llama-8b": (4096, 14336, 32, 32)}
        hidden_size, inner, layers, heads = sizes[args.shape]
        config = LlamaConfig(vocab_size=128256, hidden_size=hidden_size, intermediate_size=inner, num_hidden_layers=layers,
                             num_attention_heads=heads, num_key_value_heads=8, max_position_embeddings=8192,
                             tie_word_embeddings=args.shape == "llama-1b")
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda"):
            made = LlamaForCausalLM(config)
    made.save_pretrained(args.out)
    for name in os.listdir(args.tokenizer):
        if name != "config.json" and not name.endswith(".safetensors"):
            shutil.copy(os.path.join(args.tokenizer, name), args.out)
    if args.then:
        sys.exit(subprocess.run(args.then, check=False).returncode)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def command(name, run, **options):
        sub = commands.add_parser(name)
        sub.set_defaults(run=run)
        for option, default in options.items():
            flag = "--" + option.replace("_", "-")
            if default is None:
                sub.add_argument(flag, required=True)
            else:
                sub.add_argument(flag, type=type(default), default=default)

    command("two-nn", two_nn, n=20000, d=768, repeats=10)
    command("lora", lora, tokens=8192, d_in=4096, d_out=4096, r=16, repeats=20)
    command("product", product, size=8192, repeats=10)
    command("hidden", hidden, model=None, data=None, samples=2000, batch=64, max_length=128)
    command("train", train, model=None, data=None, steps=40, batch=128, max_length=128, rank=8,
            dtypes="f32,bf16,bf16-model,bf16-compiled")
    command("causal", causal, model=None, batch=8, length=512, r=16, steps=8)
    command("steps", steps, profile=None)
    command("model", model, shape=None, tokenizer=None, out=None)
    commands.choices["model"].add_argument("--then", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
