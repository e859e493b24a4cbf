"""The question, the demonstration in one press, and below it: ask engines of one's own choice."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from itertools import combinations

from nicegui import Client, ui

from kvdemo.bench import workload
from kvdemo.errors import UsageError
from kvdemo.fleet.watch import State
from kvdemo.ui import demonstration, race
from kvdemo.ui.conversation import Conversation
from kvdemo.ui.engines import EnginePool
from kvdemo.ui.parts import Choice, box, button, change, text

LENGTHS = (16, 64, 256)
REMEDY = "`kvdemo ps -p {0}` says why, `kvdemo logs -p {0}` shows its log; `kvdemo up` starts what is missing."
ORDERS = [("together", "at the same time"), ("turns", "one after another")]
AFTER_PAINT = """
await new Promise((done) => setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), 300));
return true;
"""
"""What is sent within a look (``conversation.GAP``) is drawn then."""
SHOW = """
const show = () => {
  const turn = document.querySelector(".turn[data-turn='%d']");
  if (!turn) return requestAnimationFrame(show);
  if (turn.getBoundingClientRect().top > innerHeight * 0.7) turn.scrollIntoView();
};
show();
"""
"""A window that is too small for the question and the race shows the race."""


class QuestionPanel:
    """The panel above the answers."""

    def __init__(self, pool: EnginePool, conversation: Conversation) -> None:
        self.pool, self.conversation = pool, conversation
        self.chips: dict[str, ui.label] = {}
        engines = pool.plan.engines
        self.selection = {spec.name for spec in engines}
        self.roles: workload.Roles | None = None
        with suppress(UsageError):
            self.roles = workload.roles(pool.plan)
        with box("section", "card stack ask", aria_label="Ask"):
            with box("div", "line"):
                self.question = ui.textarea(value=self._questions()[0])
                self.question.on_value_change(lambda event: setattr(conversation, "question", event.value or ""))
                self.question.props("outlined autogrow rows=1 aria-label=Question")
                self.question.on("keydown.enter.exact.prevent", self._send)
                self.demo = button("Demonstrate", self._demonstrate, "go", id="demo", title=self._explanation())
            with box("div", "hints"):
                for question in self._questions():
                    button(question, partial(self.question.set_value, question), "hint")
            with box("div", "bits choose"):
                with box("div", "bits", role="group", aria_label="Engines"):
                    for spec in engines:
                        chip = button(spec.name, partial(self._press, spec.name), "chip", data_engine=spec.name)
                        with chip:
                            text("shares" if spec.cache else "plain", "", "small")
                        self.chips[spec.name] = chip
                crowded = any(pool.share_hardware(one.name, other.name) for one, other in combinations(engines, 2))
                self.order = Choice(ORDERS, "turns" if crowded else "together", "Order")
                self.length = ui.select({n: f"up to {n} tokens" for n in LENGTHS}, value=LENGTHS[1])
                self.length.props("dense outlined options-dense aria-label='Length of the answer'")
                self.follow = ui.checkbox("follow up").props("dense title='Send the conversation so far too'")
                self.go = button("Ask these", self._send, "go ghost", id="ask")
            self.note = text("", "warn", "p")
        self.demo.set_visibility(self.roles is not None)
        self.show()

    def _questions(self) -> list[str]:
        return list(self.pool.plan.bench.get("questions") or ["What is this document about?"])

    def _press(self, name: str) -> None:
        self.selection ^= {name}
        self.show()

    def show(self) -> None:
        """Show what has changed."""
        for name, chip in self.chips.items():
            change(chip, aria_pressed="true" if name in self.selection else "false")
        busy = self.conversation.busy or self.pool.reserved
        change(self.go, disabled=busy or None)
        change(self.demo, disabled=busy or None)
        missing = [
            f"{event.service} ({event.state.value})"
            for event in self.pool.events
            if event.state not in {State.READY, State.UNCHANGED}
        ]
        notes = [
            "A benchmark is measuring: questions would disturb it." if self.pool.reserved else "",
            "" if self.pool.warmed.is_set() else "The engines are being warmed up; questions wait for it.",
            f"Not ready: {', '.join(missing)}. {REMEDY.format(self.pool.project.name)}" if missing else "",
        ]
        self.note.text = " ".join(filter(None, notes))
        self.note.set_visibility(bool(self.note.text))

    async def _send(self) -> None:
        names = [name for name in self.chips if name in self.selection]
        groups = [names] if self.order.value == "together" else [[name] for name in names]
        await self._ask(groups)

    def _explanation(self) -> str:
        steps = demonstration.steps(self.pool, self.conversation.document)
        return ". ".join(f"{step.engine}: {step.text}" for step in steps)

    async def _demonstrate(self) -> None:
        """Make the document cold, then ask the engines of the story in its order."""
        if self.roles is not None and not self.conversation.busy:
            await self.pool.do(self.pool.cool, self.conversation)
            await self._ask(demonstration.groups(self.pool))

    async def _ask(self, groups: list[list[str]]) -> None:
        if self.conversation.busy:
            return
        try:
            turn = self.pool.turn(
                self.conversation, self.question.value or "", groups, int(self.length.value or 16), self.follow.value
            )
        except UsageError as error:
            ui.notify(f"{error}: {error.hint}", type="warning")
            return
        task = asyncio.create_task(
            race.ask(self.pool, self.conversation, turn, partial(_browser_drew, ui.context.client))
        )
        ui.run_javascript(SHOW % turn.number)
        self.pool.tasks.add(task)
        task.add_done_callback(self.pool.tasks.discard)


async def _browser_drew(client: Client) -> None:
    """Until this browser has drawn what it was sent; one that is hidden or gone does not, and nobody waits for it."""
    with suppress(Exception):
        await client.run_javascript(AFTER_PAINT, timeout=1.0)
