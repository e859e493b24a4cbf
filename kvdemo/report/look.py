"""How the HTML report looks: its style sheet, and the few lines of script behind the download link. Constants only."""

from __future__ import annotations

import base64
import hashlib

from kvdemo.report.markup import Markup, tag

STYLE = Markup("""
:root { color-scheme: light dark; --bg: #fff; --fg: #1b1f24; --dim: #626b76; --line: #dfe3e8; --soft: #f5f6f8;
  --accent: #0a7d5c; --accent-rgb: 10 125 92; --bad: #b42318; --warn: #8f5200;
  --cold: #7d8895; --store: #4d5762; --reuse: #0a7d5c; --again: #2f6fd6; --client: #c3b1e1; --queue: #a8612c;
  --lookup: #d9a066; --prefill: #7652b5; }
@media (prefers-color-scheme: dark) { :root { --bg: #14171b; --fg: #e6e9ed; --dim: #97a1ad; --line: #2d333b;
  --soft: #1c2127; --accent: #3fc79a; --accent-rgb: 63 199 154; --bad: #ff7b70; --warn: #e5b567; --cold: #9aa5b1;
  --store: #cfd6de; --reuse: #3fc79a; --again: #74a7f5; --client: #5d4a86; --queue: #c07a45; --lookup: #e0b080;
  --prefill: #a78bdb; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--fg); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 48px 24px 64px; }
header { margin-bottom: 56px; }
h1 { font-size: clamp(44px, 9vw, 88px); line-height: 1; letter-spacing: -.03em; margin: 8px 0 20px; font-weight: 700;
  color: var(--accent); overflow-wrap: anywhere; }
h1.long { font-size: clamp(28px, 4vw, 40px); line-height: 1.2; letter-spacing: -.01em; }
h1.bad { color: var(--bad); } h1.plain { color: var(--fg); } .strong { font-weight: 650; }
h2 { font-size: 20px; line-height: 1.3; margin: 0 0 4px; letter-spacing: -.01em; }
h3 { font-size: 14px; font-weight: 600; margin: 24px 0 4px; }
section { margin: 0 0 52px; }
p { margin: 0 0 10px; max-width: 76ch; overflow-wrap: anywhere; }
.lead { font-size: clamp(18px, 2.4vw, 22px); line-height: 1.45; max-width: 46ch; text-wrap: balance; }
.name { white-space: nowrap; }
.notes { list-style: none; margin: 14px 0 0; padding: 0; } .notes li { margin-bottom: 4px; }
.eyebrow, .dim, figcaption, .say { color: var(--dim); } .eyebrow { font-size: 14px; margin: 0; }
.say, .dim { font-size: 14px; max-width: none; } .say { margin-bottom: 14px; } .few { width: auto; }
.bad { color: var(--bad); } .warn { color: var(--warn); } .good, .shared { color: var(--accent); }
.local { color: var(--again); } .computed, .plain { color: inherit; }
.wide { overflow-x: auto; margin: 0 -24px; padding: 0 24px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 15px; }
th { text-align: left; font-weight: 600; font-size: 13px; color: var(--dim); white-space: nowrap; }
th, td { padding: 8px 18px 8px 0; border-bottom: 1px solid var(--line); vertical-align: baseline; }
.rates table { font-size: 13px; } .rates td { white-space: nowrap; } .rates th, .rates td { padding-right: 12px; }
th:last-child, td:last-child { padding-right: 0; } td { max-width: 46ch; overflow-wrap: break-word; }
td:first-child { min-width: 11ch; overflow-wrap: anywhere; } td.words { min-width: 26ch; }
.n { text-align: right; white-space: nowrap; } tr.key td { font-weight: 650; background: rgb(var(--accent-rgb) / .07); }
tr.key td:first-child { box-shadow: -12px 0 0 rgb(var(--accent-rgb) / .07); }
tr.key td:last-child { box-shadow: 12px 0 0 rgb(var(--accent-rgb) / .07); }
.heat { width: auto; } .heat td { text-align: right; min-width: 96px; padding: 12px 14px; border: 2px solid var(--bg);
  background: rgb(var(--accent-rgb) / var(--heat, 0)); } .heat th { padding-right: 14px; border: 0; }
.heat small { display: block; font-size: 12px; opacity: .8; }
figure { margin: 0; }
.row { display: grid; grid-template-columns: 190px 1fr; gap: 0 18px; align-items: center;
  min-height: 26px; }
.row > .name { font-size: 14px; line-height: 1.3; overflow-wrap: anywhere; }
.row .name small { color: var(--dim); font-size: 13px; } .row > .under { grid-column: 2; font-size: 13px;
  color: var(--dim); margin: 1px 0 12px; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; overflow: visible; }
svg text { font: 12px system-ui, sans-serif; fill: var(--dim); } .grid { stroke: var(--line); }
.dot { fill-opacity: .55; stroke-width: 1.5; } .dot.open { fill: none; stroke-dasharray: 2 2; }
.median { stroke: var(--fg); stroke-width: 2; } .mark { stroke: var(--fg); stroke-dasharray: 4 4; }
.curve { stroke-width: 2.5; stroke-linecap: round; fill: none; } .floor.curve { stroke-dasharray: 2 6; }
svg text.strong { fill: var(--fg); }
.cold { fill: var(--cold); stroke: var(--cold); } .store { fill: var(--store); stroke: var(--store); }
.reuse { fill: var(--reuse); stroke: var(--reuse); } .again { fill: var(--again); stroke: var(--again); }
.evicted, .restarted { fill: var(--reuse); stroke: var(--reuse); }
.floor { fill: var(--fg); stroke: var(--fg); } rect.part { stroke: none; }
.client { fill: var(--client); } .queue { fill: var(--queue); } .lookup { fill: var(--lookup); }
.prefill { fill: var(--prefill); } .whole { fill: var(--client); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 13px; color: var(--dim); margin: 0 0 12px; }
.legend svg { width: 12px; height: 12px; flex: none; } .legend span { display: inline-flex; align-items: center;
  gap: 7px; }
dl { display: grid; grid-template-columns: 190px 1fr; gap: 6px 18px; margin: 0; font-size: 15px; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
details { margin-top: 16px; } summary { cursor: pointer; color: var(--dim); font-size: 15px; }
pre, code { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; } blockquote { margin: 0 0 14px;
  padding-left: 14px; border-left: 3px solid var(--line); white-space: pre-wrap; overflow-wrap: anywhere; }
pre { background: var(--soft); padding: 12px 14px; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere;
  margin: 6px 0 14px; }
a { color: inherit; text-underline-offset: 3px; }
@media (max-width: 640px) { main { padding: 28px 18px 48px; } .wide { margin: 0 -18px; padding: 0 18px; }
  header { margin-bottom: 40px; } .row, dl { grid-template-columns: 1fr; } .row > .under { grid-column: 1; }
  .row > .name { margin-top: 6px; } .row { min-height: 0; } .row > .name:empty { margin: 0; }
  dd { margin-bottom: 6px; } table { font-size: 14px; } th, td { padding-right: 14px; } }
@media print { :root { color-scheme: light; --bg: #fff; --fg: #000; --dim: #444; --line: #ccc; --soft: #f4f4f4;
  --accent: #08694d; --accent-rgb: 8 105 77; --cold: #5c6672; --store: #343b44; --reuse: #08694d; --again: #2560bf;
  --client: #c3b1e1; --queue: #a8612c; --lookup: #d9a066; --prefill: #7652b5; --bad: #a01d12; --warn: #7a4600; }
  @page { margin: 16mm; } main { max-width: none; padding: 0; } body { font-size: 11pt; } h1 { font-size: 52pt; }
  header { margin-bottom: 28px; } section { margin-bottom: 28px; } h2, h3, .say, .legend { break-after: avoid; }
  figure, table, tr, .row { break-inside: avoid; } th, td { padding-right: 12px; }
  .wide { overflow: visible; margin: 0; padding: 0; }
  .screen { display: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
""")

SCRIPT = Markup("""
const link = document.getElementById("download");
link.href = URL.createObjectURL(new Blob([document.getElementById("raw").textContent], {type: "application/json"}));
""")

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; script-src 'sha256-"
    + base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    + "'"
)
"""What a browser may do with the page: show it, and run exactly that script. Nothing is ever fetched."""


def page(title: str, version: str, *body: object) -> str:
    """One HTML file, made by this version of kvdemo; nothing is fetched, and no script runs but ``SCRIPT``."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="generator", content=f"kvdemo {version}"),
        tag("title", title),
        tag("style", STYLE),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', *body), lang='en')}\n"
