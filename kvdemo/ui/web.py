"""``kvdemo ui``: the page. It shows what the stories of the terminal yield, and measures nothing itself.

Every browser tab has a document and a conversation of its own, kept over a reload; engines and history are everybody's.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from fastapi.responses import PlainTextResponse
from nicegui import Client, app, events, ui

from kvdemo.errors import KvdemoError
from kvdemo.fleet.watch import State
from kvdemo.host.state import Project
from kvdemo.report import terminal
from kvdemo.ui.ask import QuestionPanel
from kvdemo.ui.bench import RUNS, Bench, Load
from kvdemo.ui.conversation import Bell, Conversation
from kvdemo.ui.document import DocumentPanel
from kvdemo.ui.engines import NOTHING, EnginePool
from kvdemo.ui.history import History
from kvdemo.ui.hosts import guard
from kvdemo.ui.look import SCRIPT, STYLE
from kvdemo.ui.parts import box, button, change, style, text
from kvdemo.ui.strip import Strip
from kvdemo.ui.turns import TurnList

HEALTH = {
    State.READY: "ready",
    State.UNCHANGED: "ready",
    State.ABSENT: "dead",
    State.EXITED: "dead",
    State.FAILED: "dead",
}
IS_DARK = "() => emit(document.body.classList.contains('body--dark'))"
TABS = {"ask": "Ask", "history": "History", "bench": "Bench"}


class Fleet:
    """The services and their health."""

    def __init__(self, pool: EnginePool) -> None:
        self.pool = pool
        self.place = box("div", "fleet", role="status", aria_label="Health of the fleet")
        self.pills: dict[str, ui.label] = {}

    def show(self) -> None:
        """Show what has changed."""
        names = [spec.name for spec in self.pool.plan.services]
        if list(self.pills) != names:
            self.place.clear()
            with self.place:
                self.pills = {name: text(name, "pill", "span") for name in names}
        events = {event.service: event for event in self.pool.events}
        for name, pill in self.pills.items():
            event = events.get(name)
            health = HEALTH.get(event.state, "degraded") if event else ""
            style(pill, f"pill {health}".strip())
            label = f"{event.state.value} {event.at}{': ' if event.detail else ''}{event.detail}" if event else ""
            change(pill, title=label, data_health=health or None)
            pill.text = name if health in {"ready", ""} else f"{name}: {event.state.value if event else ''}"


class Page:
    """One browser tab."""

    def __init__(self, pool: EnginePool, conversation: Conversation, result_dir: Path) -> None:
        self.pool, self.conversation = pool, conversation
        self.panels: dict[str, ui.element] = {}
        with box("div", "page"):
            with box("header", "top"):
                ui.html("kv<b>demo</b>", sanitize=False, tag="span").classes("brand")
                self.fleet = Fleet(pool)
                with box("nav", "tabs", role="tablist"):
                    self.tabs = {key: self._tab(key, label) for key, label in TABS.items()}
                self.dark = ui.dark_mode(app.storage.tab.get("dark"))
                shade = text("◐", "icon", "button")
                change(shade, id="shade", aria_label="Light or dark", title="Light or dark")
                shade.on("click", self._shade, js_handler=IS_DARK)
            self.banner = text("", "banner")
            self.banner.props["role"] = "alert"
            self.strip = Strip(pool)
            with box("main", "columns") as self.panels["ask"]:
                with box("div", "stack"):
                    self.ask = QuestionPanel(pool, conversation)
                    self.turns = TurnList(pool, conversation.turns, conversation.document)
                self.paper = DocumentPanel(pool, conversation)
            with box("main") as self.panels["history"]:
                self.history = History(pool)
            with box("main", "stack") as self.panels["bench"]:
                self.measurements = [Bench(pool, conversation, result_dir), Load(pool, conversation, result_dir)]
        self._open("ask")
        self.everybody()

    def refresh(self) -> None:
        """Show what has changed in this conversation."""
        self.strip.show()
        self.turns.show(self.conversation.document)
        self.paper.show()
        self.ask.show()

    def everybody(self) -> None:
        """Show what has changed for all."""
        self.fleet.show()
        self.strip.show()
        self.banner.text = self.pool.problem
        self.banner.set_visibility(bool(self.pool.problem))
        self._show_panel()
        self.ask.show()
        self.turns.show(self.conversation.document)
        self.paper.show()

    def _tab(self, key: str, label: str) -> ui.label:
        return button(label, lambda: self._open(key), "tab", role="tab", id=f"tab-{key}")

    def _open(self, key: str) -> None:
        for name, panel in self.panels.items():
            panel.set_visibility(name == key)
            change(self.tabs[name], aria_selected="true" if name == key else "false")
        self.open = key
        self._show_panel()

    def _show_panel(self) -> None:
        """Only what is seen: a chart that nobody sees would be drawn while engines are timed."""
        if self.open == "history":
            self.history.show()
        elif self.open == "bench":
            for measurement in self.measurements:
                measurement.show()

    def _shade(self, event: events.GenericEventArguments) -> None:
        self.dark.value = app.storage.tab["dark"] = not event.args


class Site:
    """What is behind every tab: the stage, and the conversations by the number that a tab remembers."""

    def __init__(self, pool: EnginePool, result_dir: Path) -> None:
        self.pool, self.result_dir = pool, result_dir
        self.conversations: dict[int, Conversation] = {}
        self.announcing: asyncio.Task[None] | None = None

    async def page(self) -> None:
        """A tab has been opened, or loaded again."""
        ui.add_css(STYLE)
        ui.add_body_html(f"<script>{SCRIPT}</script>")
        client = ui.context.client
        await client.connected()
        if not client.has_socket_connection:
            return  # nobody looked
        conversation = await self._conversation()
        page = Page(self.pool, conversation, self.result_dir)
        bells = (
            (conversation.bell, page.refresh),
            (self.pool.bell, page.everybody),
            (self.pool.frame_bell, page.strip.show),
        )
        for bell, show in bells:
            _listen(client, bell, show)
        await self.pool.do(self.pool.observe)
        if (
            conversation.document is NOTHING
        ):  # its length depends on the warm-up, which nobody waits for to see the page
            await self._read(conversation)

    async def _conversation(self) -> Conversation:
        """This tab's; the one from before if it was loaded again."""
        conversation = self.conversations.get(app.storage.tab.get("conversation", -1))
        if conversation is None:
            app.storage.tab["conversation"] = len(self.conversations)
            bell = Bell(asyncio.get_running_loop())
            conversation = Conversation(NOTHING, self.pool.plan.bench.get("system", ""), bell)
            self.conversations[len(self.conversations)] = conversation
        if conversation.document is NOTHING and self.pool.plan.bench.get("context"):
            await self._read(conversation)
        return conversation

    async def _read(self, conversation: Conversation) -> None:
        """Give a tab its first document, unless it has got another one meanwhile."""
        try:
            first = await self.pool.do(self.pool.first_document)
        except KvdemoError as error:
            ui.notify(f"{error}: {error.hint}", type="warning")
            return
        if conversation.document is NOTHING:
            conversation.document = first
            conversation.bell.ring()

    def history(self) -> PlainTextResponse:
        """Every request as the bench saves them."""
        name = f'attachment; filename="kvdemo-{self.pool.project.name}-{self.pool.run_id[:4]}.jsonl"'
        return PlainTextResponse(self.pool.jsonl(), headers={"Content-Disposition": name})

    async def stop(self) -> None:
        """End what was started for the page."""
        for run in RUNS:
            run.stop()
        await self.pool.close()


def _listen(client: Client, bell: Bell, show: Callable[[], None]) -> None:
    def hear() -> None:
        with client:
            show()

    bell.listeners.add(hear)
    client.on_delete(lambda: bell.listeners.discard(hear))


async def _announce(at: tuple[str, int], url: str) -> None:
    """Say where the page is, once it answers there: whoever opens it at once must not be refused."""
    while True:
        try:
            _, writer = await asyncio.open_connection(*at)
        except OSError:
            await asyncio.sleep(0.02)
            continue
        writer.close()
        terminal.out.print(f"Open {url} (Ctrl-C ends it)", soft_wrap=True)
        return


def serve(project: Project, environ: Mapping[str, str], at: tuple[str, int], result_dir: Path) -> None:
    """Show the page of a project until Ctrl-C. Raises NotReadyError if it is not up."""
    pool = EnginePool(project, environ)
    site = Site(pool, result_dir)
    url = f"http://{f'[{at[0]}]' if ':' in at[0] else at[0]}:{at[1]}"

    async def start() -> None:
        await pool.open()
        site.announcing = asyncio.create_task(_announce(at, url))

    guard(at[0], url)
    ui.page("/", title=f"kvdemo: {project.name}")(site.page)
    app.get("/history.jsonl")(site.history)
    app.on_startup(start)
    app.on_shutdown(site.stop)
    # The clock of a request runs in a thread: whoever holds the interpreter gives it up ten times sooner than usual.
    sys.setswitchinterval(0.0005)
    with suppress(KeyboardInterrupt):
        ui.run(
            host=at[0],
            port=at[1],
            title="kvdemo",
            reload=False,
            show=False,
            tailwind=False,
            dark=None,
            show_welcome_message=False,
            binding_refresh_interval=None,
            reconnect_timeout=30.0,
        )
