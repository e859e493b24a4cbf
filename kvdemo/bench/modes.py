"""The other shapes of a run: the matrix of writers and readers, the sweep over lengths, the tax on decoding.

Each is a generator of samples in terms of a Rig that has been prepared.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from kvdemo.bench import cacheserver, workload
from kvdemo.bench.rig import Prompt, Rig
from kvdemo.bench.workload import Step
from kvdemo.judge.sample import Arm, Doing, Sample

DECODE_TOKENS = 32


def matrix(rig: Rig) -> Generator[Doing | Sample]:
    """Every engine writes a document of its own, every engine (itself included) is then asked about it."""
    engines, prompt = rig.plan.engines, rig.prompt
    total = rig.options.trials * len(engines) ** 2
    done = 0
    for trial in range(1, rig.options.trials + 1):
        for writer in engines:
            for reader in engines:
                yield Doing(f"trial {trial}: {writer.name} writes, {reader.name} reads", done, total)
                salt = rig.salt(f"{trial}-{writer.name}-{reader.name}")
                chunks = prompt.tokens // (writer.chunk_size or rig.chunk) if writer.cache else 0
                arm: Arm = "store" if writer.cache else "cold"
                step = Step(trial, arm, writer, salt, 0, writer=writer.name)
                yield rig.meter.ask(step, prompt.path, prompt.body(writer, salt), chunks)
                pools = {writer.pool or writer.cache, reader.pool or reader.cache}
                shared = writer is reader or (len(pools) == 1 and "" not in pools)
                if shared and chunks:
                    rig.make_loadable([salt], chunks, writer, reader)
                hit = workload.reusable(prompt.tokens, rig.chunk) if shared else 0
                step = Step(trial, "reuse", reader, salt, hit, writer=writer.name)
                yield rig.meter.ask(step, prompt.path, prompt.body(reader, salt))
                cacheserver.forget(rig.plan, salt)
                done += 1


def lengths(rig: Rig) -> Generator[Doing | Sample]:
    """The trials for prefixes of the document of about these many tokens, each length once."""
    per_token = len(rig.options.document) / rig.prompt.tokens
    measured: set[int] = set()
    for wanted in sorted(rig.options.lengths):
        prompt = rig.make_prompt(rig.options.document[: int(wanted * per_token)])
        if prompt.tokens not in measured:
            measured.add(prompt.tokens)
            yield from rig.trials(prompt, length=prompt.tokens)
            yield from control(rig, prompt, length=prompt.tokens)


def control(rig: Rig, prompt: Prompt, length: int = 0) -> Generator[Doing | Sample]:
    """The same prompt on each plain engine that has exactly the reused tokens in its own prefix cache.

    Without a plain engine, on the writer. It gets them from a prompt of the same length and the same first tokens whose
    next token differs: the same prefill shapes, hence the same bits. Requests that share a batch round differently, so
    there is none for them.
    """
    if rig.options.concurrency > 1:
        return
    ids = list(prompt.ids)
    hit = workload.reusable(len(ids), rig.chunk)
    other = [*ids[:hit], *reversed(ids[hit:])]
    if other[hit] == ids[hit]:
        other[hit] = ids[0]
    for engine in rig.cast.plain[::-1] or (rig.cast.writer,):
        yield Doing(f"control: a local hit of the same length on {engine.name}")
        salt = rig.salt(f"{length}-control")
        body = workload.body(engine.model, {"prompt": other}, max_tokens=1, salt=salt, logprobs=1)
        step = Step(0, "control", engine, salt, hit, length=length)
        rig.meter.ask(replace(step, expected=0), "/v1/completions", body)  # and its tokens are counted before the next
        yield rig.meter.ask(step, prompt.path, prompt.body(engine, salt))


def decode_tax(rig: Rig) -> Generator[Doing | Sample]:
    """Gaps between the tokens of the reader's answer while the writer stores, and while a plain engine computes.

    The second is the fair comparison: what is left of the difference is the storing, not the load on the machine.
    """
    reader = rig.cast.reader
    short = {"prompt": "Once upon a time"}
    for trial in range(1, rig.options.trials + 1):
        for other in (rig.cast.baseline, rig.cast.writer) if rig.cast.plain else (rig.cast.writer,):
            yield Doing(f"decode {trial}: {reader.name} answers while {other.name} reads the document")
            salt = rig.salt(f"decode-{trial}-{other.name}")
            gaps: list[float] = []
            last: Sample | None = None
            with ThreadPoolExecutor(max_workers=1) as pool:
                busy = pool.submit(rig.meter.client(other).stream, rig.prompt.path, rig.prompt.body(other, salt))
                while not busy.done():
                    body = workload.body(reader.model, short, max_tokens=DECODE_TOKENS, salt=salt, logprobs=None)
                    step = Step(trial, "decode", reader, salt, 0, writer=other.name)
                    sample = rig.meter.ask(step, "/v1/completions", body)
                    if not busy.done() or last is None:
                        gaps += sample.itl
                        last = sample
            if last:
                yield replace(last, itl=tuple(gaps))
