"""Small parts of the page: plain elements, and text that stays text whatever it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from nicegui import ui


def box(tag: str = "div", classes: str = "", **props: Any) -> ui.element:
    """An element; ``data_phase`` is the attribute data-phase."""
    element = ui.element(tag).classes(classes)
    for name, value in props.items():
        element.props[name.rstrip("_").replace("_", "-")] = value
    return element


def text(words: str = "", classes: str = "", tag: str = "div") -> ui.label:
    """An element with text: what an engine or a file says can never become markup."""
    label = ui.label(words).classes(classes)
    label.tag = tag
    return label


def button(words: str, act: Callable[[], Any], classes: str = "plain", **props: Any) -> ui.label:
    """A button of the browser's own: the keyboard works without our help."""
    label = text(words, classes, "button")
    label.props["type"] = "button"
    for name, value in props.items():
        label.props[name.rstrip("_").replace("_", "-")] = value
    label.on("click", lambda: act())  # noqa: PLW0108 (not the event)
    return label


def change(element: ui.element, **props: Any) -> None:
    """Set attributes, and send them only if they differ; None removes one."""
    for value_text, value in props.items():
        name = value_text.rstrip("_").replace("_", "-")
        if element.props.get(name) != value:
            element.props.set_optional(name, value)


def style(element: ui.element, classes: str) -> None:
    """Make these its only classes."""
    if list(element.classes) != classes.split():
        element.classes(replace=classes)


class Choice:
    """A few buttons of which one is pressed."""

    def __init__(self, options: Iterable[tuple[str, str]], value: str, label: str) -> None:
        self.value = value
        with box("div", "seg", role="group", aria_label=label):
            self.buttons = {key: button(words, partial(self.choose, key), "") for key, words in options}
        self.choose(value)

    def choose(self, value: str) -> None:
        """Press one."""
        self.value = value
        for key, pressed in self.buttons.items():
            change(pressed, aria_pressed="true" if key == value else "false")
