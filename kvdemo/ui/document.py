"""The document beside the chat: what it is, who has its KV, another one, and cold again."""

from __future__ import annotations

import re

from nicegui import events, ui

from kvdemo.errors import KvdemoError
from kvdemo.ui.conversation import Conversation, Document
from kvdemo.ui.engines import EnginePool
from kvdemo.ui.parts import box, button, style, text

WRAPPED = 60
TABLE = re.compile(r"\S {2,}\S|\t|\|")
LARGEST = 64 * 1024**2
PASTED = "pasted text"
UPLOAD = """
const text = document.getElementById("pasted").value;
getElement({id}).$refs.qRef.addFiles([new File([text], "{name}", {{type: "text/plain"}})]);
"""
"""What is pasted travels as a file does: a message of the page's socket holds no more than a megabyte."""


class DocumentPanel:
    """The document's card."""

    def __init__(self, pool: EnginePool, conversation: Conversation) -> None:
        self.pool, self.conversation = pool, conversation
        self.document_shown: Document | None = None
        self.readers: list[str] | None = None
        self.picker = Picker(pool, conversation)
        with box("aside", "card paper", aria_label="Document"):
            self.name = text("", "", "h2")
            with box("div", "facts n"):
                with box("span"):
                    self.words = text("", "", "b")
                    text(" words", "dim", "span")
                with box("span"):
                    self.tokens = text("", "", "b")
                    text(" tokens", "dim", "span")
            self.prompts_box = box("div", "known")
            with box("div"):
                with box("div", "bits"):
                    button("Cold again", self._cool, "plain", id="cold", title="Under a salt that no cache has seen")
                    button("Other document…", self.picker.open, "plain", id="another")
                with box("details"):
                    text("Instruction", "", "summary")
                    self.system = ui.textarea(value=conversation.system, on_change=self._instruct).props(
                        "outlined autogrow aria-label=Instruction"
                    )
            self.text = text("", "text")
            self.text.props["tabindex"] = "0"
        self.show()

    def show(self) -> None:
        """Show what has changed."""
        document = self.conversation.document
        if self.document_shown is None or document.text is not self.document_shown.text:
            self.name.text = document.name or "No document yet"
            self.words.text, self.tokens.text = f"{document.words:,}", f"{document.tokens:,}"
            self.text.text = reflow(document.text)
        self.document_shown = document
        readers = self.pool.readers(document)
        if self.readers != readers:
            self.readers = readers
            self.prompts_box.clear()
            with self.prompts_box:
                text("Its KV is in" if readers else "Cold: no cache has its KV", "dim small", "div")
                caches = {spec.name for spec in self.pool.plan.services if spec.kind == "cache"}
                for name in readers:
                    style(text(name, "", "span"), "shared" if name in caches else "local")

    async def _cool(self) -> None:
        await self.pool.do(self.pool.cool, self.conversation)

    def _instruct(self, event: events.ValueChangeEventArguments[str | None]) -> None:
        self.conversation.system = event.value or ""


def reflow(document: str) -> str:
    """The text as it is shown: lines that were wrapped at some width are one paragraph again; tables stay."""
    lines: list[str] = []
    for line in document.splitlines():
        before = lines[-1] if lines else ""
        if len(before) >= WRAPPED and line[:1].isalnum() and not TABLE.search(f"{before}\n{line}"):
            lines[-1] = f"{before} {line}"
        else:
            lines.append(line)
    return "\n".join(lines)


class Picker:
    """The dialog for another document: dropped, chosen or pasted."""

    def __init__(self, pool: EnginePool, conversation: Conversation) -> None:
        self.pool, self.conversation = pool, conversation
        with ui.dialog() as self.dialog, box("div", "card", role="dialog", aria_label="Another document"):
            text("Another document", "question", "h2")
            self.upload = (
                ui.upload(
                    label="Drop a text file here, or press + to choose one",
                    auto_upload=True,
                    max_file_size=LARGEST,
                    on_upload=self._on_upload,
                    on_rejected=self._on_reject,
                )
                .classes("drop")
                .props("flat")
            )
            box("textarea", "paste", id="pasted", rows="6", placeholder="… or paste text", aria_label="Pasted text")
            self.message = text("", "message bad")
            self.message.props["role"] = "alert"
            with box("div", "bits"):
                button("Use the pasted text", self._on_paste, "plain", id="use")
                box("span", "grow")
                button("Close", self.dialog.close, "plain")

    def open(self) -> None:
        """Show it."""
        self.message.text = ""
        self.dialog.open()

    async def _on_upload(self, event: events.UploadEventArguments) -> None:
        await self._take(event.file.name, await event.file.read())
        self.upload.reset()

    def _on_reject(self) -> None:
        self.message.text = f"That file is too long: more than {LARGEST // 1024**2} MiB."

    def _on_paste(self) -> None:
        self.upload.reset()
        ui.run_javascript(UPLOAD.format(id=self.upload.id, name=PASTED))

    async def _take(self, name: str, data: bytes | str) -> None:
        self.message.text = "Reading…"
        try:
            document = await self.pool.do(self.pool.document, name, data)
        except KvdemoError as error:
            self.message.text = f"{error}.\n{error.hint}".strip()
            return
        self.conversation.document = document
        self.conversation.bell.ring()
        self.dialog.close()
