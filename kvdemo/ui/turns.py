"""One turn on the page: the race, what came of it, and each engine's answer with where its prompt came from."""

from __future__ import annotations

import time

from nicegui import ui

from kvdemo import units
from kvdemo.judge.verdict import Verdict
from kvdemo.ui import demonstration
from kvdemo.ui.conversation import Document, Lane, Phase, Turn
from kvdemo.ui.engines import EnginePool
from kvdemo.ui.parts import box, change, style, text
from kvdemo.words import exchange
from kvdemo.words.tones import DEEDS, VERDICTS
from kvdemo.words.tones import SOURCES as PROVED

SOURCES = ("computed", "local", "shared")
NO_STORY = "Ask any engine. Sharing cannot be demonstrated: no engine here can read what another one stored."
DISTURBANCE = (
    "No measurement: {} ran at the same time on the same hardware, which makes times longer. “Demonstrate” asks such "
    "engines one after another; Bench measures."
)
PHASES = {
    Phase.QUEUED: "waits",
    Phase.SENT: "reading",
    Phase.ANSWERING: "answering",
    Phase.CHECKING: "counting",
    Phase.FAILED: "failed",
}


class TurnCard:
    """The card of one turn; ``show`` brings it up to date."""

    def __init__(self, pool: EnginePool, turn: Turn) -> None:
        self.turn = turn
        with box("article", "card turn", data_turn=turn.number):
            text(turn.question, "question", "h2")
            follow = f"after {len(turn.earlier)} earlier turns" if turn.earlier else ""
            facts = [turn.document.name, order(turn), follow, "one request each, seconds to the first token"]
            text(" · ".join(filter(None, facts)), "dim small wrap")
            if pool.meaningless:
                text(exchange.MEANINGLESS, "warn small", "p")
            with box("p", "finding" if len(turn.lanes) > 1 else "hidden", aria_live="polite"):
                self.factor = text("", "", "b")
                self.finding = text("", "", "span")
            self.disturbance = text("", "warn small", "p")
            self.disturbance.set_visibility(False)
            with box("div", "race", id=f"race-{turn.document.salt}-{turn.number}"):
                self.tracks = [Track(turn, lane) for lane in turn.lanes]
            with box("div", f"lanes of-{min(len(turn.lanes), 4)}"):
                self.answers = [Answer(pool, lane) for lane in turn.lanes]
        self.finished = False
        self.show()

    def show(self) -> None:
        """Show what has changed."""
        if self.finished:
            return
        for track, answer in zip(self.tracks, self.answers, strict=True):
            track.show()
            answer.show()
        self.finished = self.turn.over
        if self.finished:
            self._conclude()
            for answer in self.answers:
                style(answer.answer, "answer whole")

    def _conclude(self) -> None:
        finding, same = self.turn.finding, self.turn.same_tokens
        neighbours = sorted(set().union(*(lane.beside for lane in (finding[:2] if finding else self.turn.lanes))))
        self.disturbance.text = DISTURBANCE.format(", ".join(neighbours)) if neighbours else ""
        self.disturbance.set_visibility(bool(neighbours))
        words = ""
        if finding:
            fast, slow, ratio = finding
            sources = fast.sample.sources if fast.sample else None
            shared = fast.verdict is Verdict.SHARED
            tokens = (sources.shared if shared else sources.local) if sources else 0
            self.factor.text = units.ratio(ratio)
            style(self.factor, "" if neighbours else "shared" if shared else "local")
            words = f"faster (TTFT): {fast.engine} had {tokens:,} tokens from {'the shared' if shared else 'its own'} "
            words += f"cache, {slow.engine} computed them."
        elif failed := [lane.engine for lane in self.turn.lanes if lane.phase is Phase.FAILED]:
            words = f"{', '.join(failed)} failed; see below."
        if same is not None:
            words += (
                " All gave the same tokens." if same else " Not all gave the same tokens (cold rounds differently)."
            )
        self.finding.text = words.strip()


class Track:
    """An engine's row in the race. The browser runs its clock; the final time is the measured one."""

    def __init__(self, turn: Turn, lane: Lane) -> None:
        self.lane = lane
        clock = f"clock-{turn.document.salt}-{turn.number}-{lane.engine}"
        with box("div", "name"):
            text(lane.engine, "", "span")
            self.state = text("", "", "small")
        with box("div", "track"):
            self.fill = box("div", "fill", data_clock=clock)
        with box("div", "clock", id=clock, data_engine=lane.engine):
            box("span")
            text("s", "", "small")

    def show(self) -> None:
        """Show what has changed."""
        lane = self.lane
        elapsed = f"{time.monotonic() - lane.since:.3f}" if lane.phase is Phase.SENT else None
        if self.fill.props.get("data-phase") != lane.phase.value:
            change(self.fill, data_phase=lane.phase.value, data_elapsed=elapsed)
        change(self.fill, data_ttft=None if lane.ttft is None else f"{lane.ttft:.4f}")
        style(self.fill, f"fill {colour(lane)}".strip())
        self.state.text = PHASES.get(lane.phase, "") or deed(lane)


class Answer:
    """What an engine said, and where the tokens of its prompt came from."""

    def __init__(self, pool: EnginePool, lane: Lane) -> None:
        self.pool, self.lane = pool, lane
        with box("section", "lane", data_lane=lane.engine):
            with box("div", "head"):
                text(lane.engine, "wrap")
                self.verdict = text("", "verdict")
            with box("div", "source", role="img") as self.bar:
                self.parts = {source: box("i", source) for source in SOURCES}
            with box("div", "key"):
                self.keys = {source: text("", "hidden", "span") for source in SOURCES}
            self.answer = text("", "answer")
            self.answer.props["tabindex"] = "0"
            self.why = text("", "why")

    def show(self) -> None:
        """Show what has changed."""
        lane = self.lane
        self.answer.text = lane.text
        if not lane.phase.over:
            return
        judgement, sample = lane.judgement, lane.sample
        self.verdict.text = judgement.verdict.value if judgement else ""
        style(self.verdict, f"verdict tone-{VERDICTS[judgement.verdict]}" if judgement else "verdict")
        if judgement and judgement.why:
            dead = [e.detail for e in self.pool.events if e.service == lane.engine and lane.phase is Phase.FAILED]
            self.why.text = " · ".join(filter(None, [judgement.why, *dead]))
        if sample and sample.sources and sample.sources.total and lane.phase is Phase.DONE:
            counts = {source: getattr(sample.sources, source) for source in SOURCES}
            for source, tokens in counts.items():
                self.parts[source].style(f"width: {100 * tokens / sample.sources.total:.2f}%")
                self.keys[source].text = f"{tokens:,} {source}" if tokens else ""
                style(self.keys[source], f"k-{source}" if tokens else "hidden")
            label = ", ".join(f"{tokens:,} {source}" for source, tokens in counts.items() if tokens)
            change(self.bar, aria_label=f"Prompt tokens: {label}")


def order(turn: Turn) -> str:
    """In which order the engines are asked, in words."""
    groups = [", ".join(lane.engine for lane in group) for group in turn.groups]
    if len(groups) == 1:
        return "all at the same time" if len(turn.lanes) > 1 else ""
    return f"first {groups[0]}, then {', then '.join(groups[1:])}"


def deed(lane: Lane) -> str:
    """What an engine did with the document, in words."""
    if lane.verdict is None:
        return ""
    if lane.verdict is Verdict.COLD and lane.cache:
        return "computed and stored it"
    return DEEDS.get(VERDICTS[lane.verdict], lane.verdict.value.lower())


def colour(lane: Lane) -> str:
    """The class of its bar: what most of its prompt came from, once that is proved."""
    if lane.phase is Phase.FAILED:
        return "failed"
    return PROVED.get(VERDICTS[lane.verdict], "") if lane.verdict else ""


class StepOfStory:
    """One step of the demonstration on the empty page."""

    def __init__(self, step: demonstration.Step) -> None:
        with box("li", step.source):
            text(step.engine, "", "b")
            text(step.text, "", "span")
            self.seconds = text("", "small n")
        self.show(step)

    def show(self, step: demonstration.Step) -> None:
        """Show how long it should take."""
        self.seconds.text = f"about {step.seconds:.0f} s here" if step.seconds else ""


class TurnList:
    """All turns of a conversation, the newest on top."""

    def __init__(self, pool: EnginePool, turns: list[Turn], document: Document) -> None:
        self.pool, self.turns = pool, turns
        self.cards: list[TurnCard] = []
        with box("section", "stack", aria_label="Answers") as self.place, box("div", "card empty") as self.empty:
            text("Does sharing the KV cache pay here?", "", "b")
            with box("ol", "story"):
                self.steps = [StepOfStory(step) for step in demonstration.steps(pool, document)]
            self.estimate = text("" if self.steps else NO_STORY)
            if pool.meaningless:
                text(exchange.MEANINGLESS, "warn small", "p")
        self.show(document)

    def show(self, document: Document) -> None:
        """Show what has changed; the story tells of this document."""
        if not self.cards and self.steps:
            steps = demonstration.steps(self.pool, document)
            for place, step in zip(self.steps, steps, strict=True):
                place.show(step)
            estimate = demonstration.estimate(steps)
            self.estimate.text = f"Press Demonstrate: {estimate}." if estimate else "Press Demonstrate."
        for turn in self.turns[len(self.cards) :]:
            self.empty.set_visibility(False)
            with self.place:
                card = ui.element("div")
                with card:
                    self.cards.append(TurnCard(self.pool, turn))
            card.move(target_index=0)
        for view in self.cards:
            view.show()
