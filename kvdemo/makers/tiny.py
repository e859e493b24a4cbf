"""Make the tiny model of the embedded default: a random Llama and a tokenizer trained on one document.

It knows nothing, and it need not: the time to the first token, the size of the KV cache and the way KV moves between
engines do not depend on what the weights say. What they must do is *react*: another KV cache must give another answer.
So the attention is sharp and counts for as much as the token itself. Only whole words can win, so that an answer
neither ends early nor hides its first token in half a character.

The same seed, document and library versions give the same bytes on every machine: the numbers are uniform (integers
scaled once, no logarithm of anybody's libm), and they are rounded to bfloat16 here. Limit: it says nothing about
the quality of an answer.

``--like mistral-7b`` makes a directory of that model's shape with the same tokenizer and no weights, for engines that
make up their own (``--load-format dummy``): times are those of the real model, and answers say nothing at all.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from kvdemo import shipped
from kvdemo.makers import modelfiles

END = "</s>"
SPECIAL = ("<s>", END, "<|system|>", "<|user|>", "<|assistant|>")
VOCABULARY = 3000
HEAD = 64  # dimensions of one attention head
WORD = re.compile(" [a-z]{3,}")

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message['role'] not in ['system', 'user', 'assistant'] -%}
    {{- raise_exception('unknown role: ' + message['role']) -}}
  {%- endif -%}
  {{- '<|' + message['role'] + '|>' + message['content'] -}}
  {%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


@dataclass(frozen=True)
class Shape:
    """The sizes of the Llama, and how strongly its parts speak."""

    layers: int = 8
    hidden: int = 512
    intermediate: int = 1376
    kv_heads: int = 4
    positions: int = 65536
    sharpness: float = 2.0  # standard deviation of an attention score
    attention: float = 1.0  # size of what one layer's attention adds to the stream, in units of a token's embedding
    mlp: float = 0.6  # the same for one layer's MLP
    spread: float = 4.0  # standard deviation of a logit


REFERENCES: dict[str, dict[str, Any]] = {
    # https://huggingface.co/mistralai/Mistral-7B-Instruct-v0.2/blob/main/config.json
    "mistral-7b": {
        "architectures": ["MistralForCausalLM"],
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "vocab_size": 32000,
    },
}
"""What ``config.json`` says of models that are imitated."""

Tensors = Iterator[tuple[str, tuple[int, ...], float]]


def tensors(shape: Shape, vocabulary: int) -> Tensors:
    """Name, dimensions and standard deviation (0: all ones) of every tensor, in the order they are drawn and stored."""
    hidden, inner, keys = shape.hidden, shape.intermediate, shape.kv_heads * HEAD
    fan = hidden**-0.5
    score = (shape.sharpness * fan * fan) ** 0.5
    yield "model.embed_tokens.weight", (vocabulary, hidden), 1.0
    for layer in range(shape.layers):
        name = f"model.layers.{layer}."
        yield name + "input_layernorm.weight", (hidden,), 0.0
        yield name + "self_attn.q_proj.weight", (hidden, hidden), score
        yield name + "self_attn.k_proj.weight", (keys, hidden), score
        yield name + "self_attn.v_proj.weight", (keys, hidden), fan
        yield name + "self_attn.o_proj.weight", (hidden, hidden), fan * shape.attention
        yield name + "post_attention_layernorm.weight", (hidden,), 0.0
        yield name + "mlp.gate_proj.weight", (inner, hidden), fan
        yield name + "mlp.up_proj.weight", (inner, hidden), fan
        yield name + "mlp.down_proj.weight", (hidden, inner), inner**-0.5 * shape.mlp
    yield "model.norm.weight", (hidden,), 0.0
    yield "lm_head.weight", (vocabulary, hidden), fan * shape.spread


def draw(random: Any, dimensions: tuple[int, ...], deviation: float) -> Any:
    """The bfloat16 bits of one tensor: uniform with this standard deviation, or all ones for 0."""
    if deviation == 0.0:
        return modelfiles.bfloat16(np.ones(dimensions, dtype=np.float32))
    unit = random.random(dimensions, dtype=np.float32) * np.float32(2) - np.float32(1)
    return modelfiles.bfloat16(unit * np.float32(deviation * 3**0.5))


def silent(tokenizer: Any) -> list[int]:
    """The tokens that must never win: all but the whole words, or only the special ones if there are no words."""
    ids = range(tokenizer.get_vocab_size())
    words = {i for i in ids if WORD.fullmatch(tokenizer.decode([i]))}
    return [i for i in ids if i < len(SPECIAL) or (words and i not in words)]


def weights(shape: Shape, tokenizer: Any, seed: int) -> Iterator[Any]:
    """The bfloat16 bits of every tensor, in the order of ``tensors``."""
    random = np.random.Generator(np.random.PCG64(seed))
    for name, dimensions, deviation in tensors(shape, tokenizer.get_vocab_size()):
        bits = draw(random, dimensions, deviation)
        if name == "lm_head.weight":
            bits[silent(tokenizer)] = 0
        yield bits


def train(text: str) -> Any:
    """A byte-level BPE tokenizer of about ``VOCABULARY`` tokens: it can write any text, and this one shortest."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def configurations(shape: Shape, vocabulary: int) -> dict[str, dict[str, Any]]:
    """The JSON files beside the weights."""
    begin, end = SPECIAL.index("<s>"), SPECIAL.index(END)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": begin,
        "dtype": "bfloat16",
        "eos_token_id": end,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "kvdemo_random_weights": True,  # kvdemo says of its answers that they mean nothing
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.positions,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.hidden // HEAD,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": vocabulary,
    }
    generation = {"bos_token_id": begin, "do_sample": False, "eos_token_id": end}
    tokenizer = {
        "add_bos_token": False,
        "bos_token": "<s>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": shape.positions,
        "pad_token": END,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {"config.json": config, "generation_config.json": generation, "tokenizer_config.json": tokenizer}


def make(out: Path, document: Path, seed: int = 0, shape: Shape | None = None, reference: str = "") -> tuple[int, int]:
    """Make the model directory ``out``; return how many tokens ``document`` has and how many parameters the model.

    With ``reference`` it gets that model's shape, and no weights.

    Raises:
        OSError: the document cannot be read or the directory cannot be written.
        UnicodeDecodeError: the document is not UTF-8.
    """
    text = document.read_text(encoding="utf-8")
    shape = shape or Shape()
    tokenizer = train(text)
    with modelfiles.replacing(out) as scratch:
        files = configurations(shape, tokenizer.get_vocab_size())
        if reference:
            files["config.json"] |= REFERENCES[reference]
        modelfiles.write_json(scratch, files)
        tokenizer.save(str(scratch / "tokenizer.json"))
        parameters = 0
        if not reference:
            shapes = {name: dimensions for name, dimensions, _ in tensors(shape, tokenizer.get_vocab_size())}
            bits = weights(shape, tokenizer, seed)
            parameters = modelfiles.write_weights(scratch / "model.safetensors", shapes, bits)
    return len(tokenizer.encode(text).ids), parameters


def main() -> int:
    """Parse the arguments, make the model, say in one line what it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to make (replaced when it exists)")
    parser.add_argument("--document", type=Path, default=shipped.directory() / "handbook.txt", help="UTF-8 text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=Shape.layers)
    parser.add_argument("--like", choices=REFERENCES, default="", help="this model's shape, without weights")
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        shape = Shape(layers=arguments.layers)
        count, parameters = make(arguments.out, arguments.document, arguments.seed, shape, arguments.like)
    except (OSError, UnicodeDecodeError) as error:
        print(f"tiny: {error}", file=sys.stderr)
        return 1
    size = f"{parameters / 1e6:.1f} M parameters" if parameters else f"shaped like {arguments.like}, no weights"
    print(f"{arguments.out}: {size}; {arguments.document.name} has {count} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
