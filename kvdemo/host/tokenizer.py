"""Prompts to token ids, in the engines' interpreter and by the tokenizer and chat template that they use.

``tokens`` sends the text of this file to that interpreter, which has no kvdemo: only the standard library and
transformers are used. Each line of standard input is a JSON list of prompts; for each of them standard output gets four
bytes with the number of its token ids, then four bytes each, or -1, a length, and why there are none.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from array import array
from typing import Any

OUT = os.fdopen(os.dup(1), "wb")  # libraries write to standard output what they like
FAILED = -1


def answer(result: array[int] | str) -> None:
    """The token ids of one prompt, or why there are none."""
    if isinstance(result, str):
        text = result.encode()
        OUT.write(struct.pack("<ii", FAILED, len(text)) + text)
    else:
        OUT.write(struct.pack("<i", len(result)) + result.tobytes())


def load(name: str, template: str, *, trust: bool) -> Any:
    """The tokenizer as vLLM loads it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust)
    if template:
        with open(template, encoding="utf-8") as stream:  # noqa: PTH123
            tokenizer.chat_template = stream.read()
    return tokenizer


def tokens(tokenizer: Any, prompts: list[dict[str, Any]]) -> list[array[int] | str]:
    """The ids of all prompts. A template writes the special tokens itself; a prompt as it is gets the tokenizer's."""
    results: list[array[int] | str] = [""] * len(prompts)
    groups: dict[bool, list[tuple[int, str]]] = {True: [], False: []}
    for number, prompt in enumerate(prompts):
        if prompt["prompt"] is not None:
            groups[True].append((number, prompt["prompt"]))
            continue
        options = {"add_generation_prompt": True, **prompt["options"], "tokenize": False}
        try:
            text = tokenizer.apply_chat_template(prompt["messages"], **options)
        except Exception as error:
            results[number] = f"the chat template refused it: {' '.join(str(error).split())[:200]}"
            continue
        groups[False].append((number, text))
    for special, group in groups.items():
        for (number, _), one in zip(group, encoded(tokenizer, [text for _, text in group], special), strict=True):
            results[number] = one
    return results


def encoded(tokenizer: Any, texts: list[str], special: bool) -> list[array[int] | str]:
    """The ids of texts, together if that works (it is several times faster), else one by one."""
    if not texts:
        return []
    try:
        return [array("I", ids) for ids in tokenizer(texts, add_special_tokens=special)["input_ids"]]
    except Exception as error:
        if len(texts) == 1:
            return [f"the tokenizer refused it: {' '.join(str(error).split())[:200]}"]
        return [one for text in texts for one in encoded(tokenizer, [text], special)]


def main() -> None:
    """Arguments as JSON; ready is one line."""
    parameters = json.loads(sys.argv[1])
    try:
        tokenizer = load(parameters["name"], parameters["template"], trust=parameters["trust"])
    except Exception as error:
        OUT.write(json.dumps({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}).encode())
        sys.exit(1)
    OUT.write(b'{"ready": true}\n')
    OUT.flush()
    for line in sys.stdin.buffer:
        for result in tokens(tokenizer, json.loads(line)):
            answer(result)
        OUT.flush()


if __name__ == "__main__":
    main()
