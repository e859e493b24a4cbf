"""What a run shows, in sentences: headline, answer, complaints, noise and costs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvdemo import units
from kvdemo.judge import effect
from kvdemo.judge.effect import Effect
from kvdemo.judge.result import Cost, Ratio, Result
from kvdemo.judge.verdict import Verdict
from kvdemo.words import contest, retention
from kvdemo.words.table import few, is_baseline, spread
from kvdemo.words.tones import Piece, Tone


@dataclass(frozen=True)
class Headline:
    """The finding in a few words and in one sentence."""

    hero: str
    sentence: str
    tone: Tone


def headline(result: Result) -> Headline:
    """The finding. A wrong answer and missing proof come before any ratio, and a ratio within noise is none."""
    if result.answer.same is False:
        sentence = "What was loaded from the cache gives another answer than computing it: no speed-up is claimed."
        return Headline("Wrong answer", sentence, Tone.BAD)
    if result.mixed_prompts:
        sentence = "Its requests had prompts of their own: they are no trials of one, and no ratio is made of them."
        return Headline("A record, not a measurement", sentence, Tone.PLAIN)
    if several := _of_several(result):
        return Headline(*several, Tone.GOOD if result.valid else Tone.BAD)
    if result.speedup is None:
        return _without_speedup(result)
    run, ratio = result.conditions, result.speedup
    about = (
        f"about what only {run.writer} has read" if _writer_computed(result) else "about what had been stored before"
    )
    certainty = spread(ratio, "x") if ratio.n > 1 else "1 trial: its noise is unknown"
    alone = any(is_baseline(result, row) and row.arm == "store" for row in result.rows)
    than = f"than {run.writer} computing it," if alone else "than a plain engine"
    match effect.of(ratio, result.noise_floor):
        case Effect.NONE:
            sentence = f"{run.reader} answers no faster {than} {about}: {units.ratio(ratio.median)} ({certainty})"
            return Headline("No difference within noise", f"{sentence}{_noise_note(result)}.", Tone.PLAIN)
        case Effect.SLOWER:
            words, tone = f"{units.ratio(1 / ratio.median)} slower (TTFT)", Tone.BAD
            certainty = spread(ratio, "x") + ", as cold over reuse" if ratio.n > 1 else certainty
        case _:
            words, tone = f"{units.ratio(ratio.median)} faster (TTFT)", Tone.GOOD
    return Headline(words + few([ratio]), f"{run.reader} answers {words} {than} {about} ({certainty}).", tone)


def _writer_computed(result: Result) -> bool:
    """Whether nothing shows that the writer itself got tokens from somewhere: a connector may know no salt."""
    store = result.row("store")
    return store is None or not {Verdict.SHARED, Verdict.LOCAL, Verdict.PARTIAL} & set(store.verdicts)


def _noise_note(result: Result) -> str:
    """The noise that an effect is smaller than."""
    if result.noise_floor is None or result.speedup is None:
        return ""
    factor = effect.spread(result.noise_floor)
    return f"; two plain engines differ by up to {units.ratio(factor)}" if factor > 1 else ""


def _of_several(result: Result) -> tuple[str, str] | None:
    """The finding where it is about several engines or caches, in a few words and in a sentence."""
    if retention.rows(result):
        return retention.hero(result), retention.sentence(result)
    if result.contest:
        return contest.hero(result, result.contest), contest.sentence(result, result.contest)
    return None


def _without_speedup(result: Result) -> Headline:
    cells = result.matrix.cells if result.matrix else ()
    pairs = [cell for cell in cells if cell.expected is Verdict.SHARED and cell.writer != cell.reader]
    if pairs:
        shared = sum(cell.verdict is Verdict.SHARED for cell in pairs)
        sentence = f"In {shared} of {len(pairs)} pairs the reader got its tokens from what the writer had stored."
        tone = Tone.GOOD if result.valid else Tone.BAD
        return Headline(f"{shared} of {len(pairs)} pairs share", sentence, tone)
    return Headline("Nothing proved", f"Nothing is proved: {_why_nothing(result)}.", Tone.BAD)


def _why_nothing(result: Result) -> str:
    """What keeps the run from a speed-up: the baseline, the reuse, or that they have no trial in common."""
    baseline = next((row for row in result.rows if is_baseline(result, row)), None)
    reuse = result.row("reuse")
    if baseline and Verdict.FAILED in baseline.verdicts:
        return f"a cold request of the baseline {baseline.engine} failed"
    if reuse is None:
        return "no reader was asked about what a writer had stored"
    if reuse.verdict is not Verdict.SHARED:
        return f"the reuse of {reuse.engine} is {reuse.verdict}"
    return f"no trial holds a cold request of {result.conditions.baseline} and a reuse that both prove something"


def answer(result: Result) -> Piece:
    """Whether the answers are the same."""
    tone = {True: Tone.GOOD, False: Tone.BAD, None: Tone.DIM}[result.answer.same]
    return Piece(result.answer.text, tone)


def trials(result: Result) -> str:
    """How many trials there were."""
    trials = result.conditions.num_trials
    if result.mixed_prompts:
        return units.count(result.completed + result.failed, "request")
    if result.conditions.interrupted:
        return f"{units.count(result.trials_run, 'trial')}, interrupted"
    return units.count(result.trials_run or trials, "trial")


def facts(result: Result) -> list[str]:
    """What stands beside the title: model, prompt, trials, device."""
    run = result.conditions
    prompts = "prompts of their own" if result.mixed_prompts else f"{result.prompt_tokens:,} prompt tokens"
    return [run.model_id, prompts, trials(result), run.device]


def complaints(result: Result) -> list[str]:
    """What does not prove what it should, and why: rows, samples that are not counted, cells of the matrix."""
    lines = []
    for row in result.rows:
        name = f"{row.engine} {row.arm}"
        if row.why:
            lines.append(f"{name}: {row.verdict}: {row.why}")
        else:
            lines += [f"{name}: trial {one.trial} is not counted: {one.verdict}: {one.why}" for one in row.dropped]
    for cell in result.matrix.cells if result.matrix else ():
        if cell.verdict is not cell.expected:
            because = f": {cell.why}" if cell.why else ""
            lines.append(f"{cell.writer} to {cell.reader}: {cell.verdict} instead of {cell.expected}{because}")
    explained = any(Verdict.FAILED in row.verdicts for row in result.rows) or any(
        cell.verdict is Verdict.FAILED for cell in (result.matrix.cells if result.matrix else ())
    )
    if result.failed and not explained:
        pronoun = "it" if result.failed == 1 else "them"
        lines.append(f"{units.count(result.failed, 'request')} failed; no ratio is made with {pronoun}.")
    lines += _priorities(result.conditions.nice)
    return lines


COSTS = {
    "store_tax": "Storing while computing",
    "lookup_tax": "Asking the cache",
    "visibility_lag": "Until others can load it",
    "decode_tax": "Decoding while others store",
}


def _priorities(nice: Mapping[str, int]) -> list[str]:
    """Engines that do not compete with the machine's other work on equal terms."""
    lower = {name: value for name, value in nice.items() if value > 0}
    higher = {name: value for name, value in nice.items() if value < 0}
    kinds = (("Lowered", lower, "first"), ("Raised", higher, "second"))
    return [
        f"{what} priority (nice {', '.join(f'{name} {value}' for name, value in of.items())}): others on the machine "
        f"come {place}."
        for what, of, place in kinds
        if of
    ]


def cost(result: Result, name: str, one: Cost) -> str:
    """What one thing costs; a factor within noise is none."""
    if one.unit == "x" and one.min is not None and one.max is not None:
        ratio = Ratio(one.n, one.median, one.min, one.max, one.low, one.high)
        noise = result.noise_floor if name == "store_tax" else None
        if effect.of(ratio, noise) is Effect.NONE:
            return f"no difference within noise ({units.quantity(one.median, one.unit)})"
    return units.quantity(one.median, one.unit)


def notes(result: Result) -> list[str]:
    """Noise, costs and the client's own share, a sentence each."""
    lines = []
    if noise := result.noise_floor:
        lines.append(f"Noise: cold against cold is {units.ratio(noise.median)} ({spread(noise, 'x')}).")
    if result.conditions.max_concurrency > 1 and result.row("store") and "store_tax" not in (result.costs or {}):
        lines.append(f"{COSTS['store_tax']}: not compared: the writer was asked one at a time, others several.")
    for whose, costs in _costs(result).items():
        for name, one in costs.items():
            title = COSTS.get(name, name.replace("_", " ").capitalize())
            lines.append(f"{whose}{title}: {cost(result, name, one)}, {spread(one, one.unit)} ({one.text}).")
    if own := result.conditions.client_overhead:
        times = f"p50 {units.duration(own.p50_ms)}, p90 {units.duration(own.p90_ms)}"
        lines.append(f"Client overhead: {times} (n = {own.n}, {own.prompt_bytes / 1024:.0f} KiB prompts).")
    return lines


def _costs(result: Result) -> Mapping[str, Mapping[str, Cost]]:
    """What is said of whom: of several caches each, by its name."""
    if not result.contest:
        return {"": result.costs or {}}
    called = contest.names(result.contest)
    return {f"{called[side.contender.cache]}: ": side.costs or {} for side in result.contest.sides}


def _limits(result: Result) -> list[str]:
    if not result.contest:
        return [result.limit.text] if result.limit else []
    called = contest.names(result.contest)
    return [f"{called[side.contender.cache]}: {side.limit.text}" for side in result.contest.sides if side.limit]


def lines(result: Result) -> Sequence[Piece]:
    """The sentences below the table: the finding, the answer, the limit."""
    lines = [Piece(line, Tone.WARN) for line in complaints(result)]
    lines.append(Piece(headline(result).sentence, Tone.STRONG))
    if result.rows:
        same = answer(result)
        lines.append(Piece(f"Same answer? {same.text}", Tone.BAD if same.tone is Tone.BAD else Tone.PLAIN))
    return lines


def details(result: Result) -> Sequence[Piece]:
    """What stands below that when asked for: the limit, noise, costs, the client's share."""
    return [*map(Piece, _limits(result)), *(Piece(note, Tone.DIM) for note in notes(result))]
