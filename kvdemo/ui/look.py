"""How the page looks: its style sheet and the script that runs its clocks. Constants only.

A colour has one meaning, here, in the report (``report.look``) and in the terminal: grey computed, blue an engine's own
cache, green the shared cache, amber not proved, red failed. Everything else is ink on paper. Everything a stream
changes has its place before it comes, so that nothing jumps; nothing glides: every frame takes processor time from
engines beside it.
The colour scheme of the report's iframe is what the report takes for its reader's wish: it follows the page's toggle.
"""

from __future__ import annotations

STYLE = """
:root { --bg: #f4f5f7; --card: #fff; --fg: #14181d; --dim: #5b6571; --line: #d9dee4; --soft: #eef0f3;
  --bad: #b42318; --warn: #8f5200; --computed: #7d8895; --local: #2f6fd6; --shared: #0a7d5c;
  --on: #fff; --focus: #14181d; }
body.body--dark { --bg: #0e1114; --card: #171b20; --fg: #eef1f4; --dim: #a1abb7; --line: #2c333b; --soft: #20262d;
  --bad: #ff7b70; --warn: #e5b567; --computed: #8f9aa6; --local: #74a7f5; --shared: #3fc79a;
  --on: #0e1114; --focus: #eef1f4; }
html { font-size: clamp(16px, 10px + .52vw, 21px); -webkit-text-size-adjust: 100%; scrollbar-gutter: stable; }
body { background: var(--bg); color: var(--fg); font: 1rem/1.45 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
.nicegui-content { padding: 0; display: block; }
.page { max-width: 118rem; margin: 0 auto; padding: 0 clamp(.7rem, 2vw, 2rem) 3rem; }
button { font: inherit; color: inherit; background: none; border: 0; cursor: pointer; border-radius: .5rem; }
button:disabled { opacity: .45; cursor: default; }
:focus-visible { outline: .18rem solid var(--focus); outline-offset: .12rem; }
h1, h2, h3, p { margin: 0; font-weight: inherit; font-size: inherit; line-height: inherit; letter-spacing: 0; }
.n { font-variant-numeric: tabular-nums; } .dim { color: var(--dim); } .small { font-size: .82rem; }
.bad { color: var(--bad); } .warn { color: var(--warn); } .grow { flex: 1; } .wrap { overflow-wrap: break-word; }
.bits { display: flex; gap: .6rem; align-items: center; flex-wrap: wrap; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .8rem; padding: 1rem 1.2rem; }

.top { display: flex; gap: .5rem 1.4rem; align-items: center; flex-wrap: wrap; padding: .8rem 0; }
.brand { font-weight: 400; font-size: 1.35rem; letter-spacing: -.03em; } .brand b { font-weight: 750; }
.fleet { display: flex; gap: .4rem; flex-wrap: wrap; flex: 1; }
.pill { display: inline-flex; align-items: center; gap: .45rem; padding: .16rem .7rem; border-radius: 2rem;
  background: var(--card); border: 1px solid var(--line); font-size: .85rem; white-space: nowrap; }
.pill::before { content: "?"; font-weight: 700; line-height: 1; } .pill.ready::before { content: "\\2713"; }
.pill.degraded::before { content: "\\2026"; } .pill.degraded { color: var(--warn); border-color: var(--warn); }
.pill.dead::before { content: "\\2715"; } .pill.dead { color: var(--bad); border-color: var(--bad); }
.tabs { display: flex; gap: .2rem; } .tab { padding: .3rem .9rem; font-weight: 600; color: var(--dim); }
.tab[aria-selected=true] { color: var(--fg); background: var(--card); box-shadow: inset 0 -.16rem var(--fg); }
.icon { width: 2.3rem; height: 2.3rem; font-size: 1.15rem; border: 1px solid var(--line); background: var(--card); }
.banner { background: var(--bad); color: var(--on); border-radius: .6rem; padding: .6rem 1rem; margin-bottom: 1rem;
  font-weight: 600; }

.strip { padding: .45rem 1rem; margin: 0 0 1rem; } .strip > summary { display: flex; gap: .3rem .8rem;
  align-items: center; flex-wrap: wrap; font-size: .9rem; } .strip > summary > b { color: var(--fg); }
.strip > summary > .flow { flex: 1; min-width: 7rem; max-width: 22rem; } .strip .scroll { margin-top: .5rem; }
.flow { display: flex; height: .85rem; min-width: 7rem; border-radius: .2rem; overflow: hidden;
  background: var(--soft); }
.flow i { display: block; } .flow .l1 { background: var(--shared); } .flow .l2 { background: repeating-linear-gradient(
  -45deg, var(--shared) 0 .25rem, var(--card) .25rem .4rem); }
.strip .grid { font-size: .9rem; } .strip .grid td:first-child {
  position: sticky; left: 0; background: var(--card); font-weight: 650; } .strip .flowing { width: 40%; }
.strip .prompts { font-size: .85rem; margin: .5rem 0 .2rem; display: grid; gap: .1rem; }
.tone-shared { color: var(--shared); } .tone-local { color: var(--local); } .tone-dim { color: var(--dim); }
.tone-bad { color: var(--bad); } .tone-warn { color: var(--warn); }

.columns { display: grid; grid-template-columns: minmax(0, 1fr) minmax(20.5rem, 29%); gap: 1.1rem; align-items: start; }
.stack { display: grid; gap: 1rem; min-width: 0; }
.line { display: flex; gap: .6rem; align-items: stretch; } .line .q-field { flex: 1; min-width: 0; }
.choose { border-top: 1px solid var(--line); padding-top: 1rem; }
.q-field__native, .q-field__input, .q-field--outlined .q-field__control { color: var(--fg) !important; }
.q-field--dense .q-field__control, .q-field--dense .q-field__native { min-height: 2.3rem !important; height: 2.3rem;
  line-height: 1.3; font-size: .95rem; } .q-checkbox__label { font-size: .95rem; }
.line .q-field__control { min-height: 3.1rem; border-radius: .6rem; } .line .q-field__native { font-size: 1.15rem;
  font-family: inherit; line-height: 1.35; padding: .75rem 0; }
.go { background: var(--fg); color: var(--card); font-weight: 700; padding: 0 1.5rem; font-size: 1.1rem;
  min-height: 3.1rem; white-space: nowrap; border: 2px solid var(--fg); }
.go.ghost { background: none; color: var(--fg); font-size: 1rem; min-height: 2.4rem; padding: 0 1rem; }
.plain { border: 1px solid var(--line); background: var(--card); padding: .35rem .7rem; font-weight: 600;
  font-size: .9rem; white-space: nowrap; }
.plain:hover:enabled, .chip:hover:enabled, .icon:hover { border-color: var(--dim); }
.chip { border: 2px solid var(--line); padding: .3rem .8rem .3rem .6rem; font-weight: 650; font-size: 1.02rem;
  color: var(--dim); background: var(--card); display: inline-flex; gap: .5rem; align-items: center; }
.chip::before { content: ""; width: 1.05em; height: 1.05em; border: 2px solid currentColor; border-radius: .25em;
  display: grid; place-items: center; line-height: 1; font-size: .8em; }
.chip[aria-pressed=true] { color: var(--fg); border-color: var(--fg); }
.chip[aria-pressed=true]::before { content: "\\2713"; background: var(--fg); color: var(--card);
  border-color: var(--fg); }
.chip small { font-weight: 450; color: var(--dim); }
.seg { display: inline-flex; border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; }
.seg button { border-radius: 0; padding: .35rem .8rem; color: var(--dim); background: var(--card); }
.seg button[aria-pressed=true] { background: var(--fg); color: var(--card); }
.hints { display: flex; flex-wrap: wrap; gap: .4rem .5rem; } .hint { border-radius: 1rem; padding: .12rem .8rem;
  background: var(--soft); font-size: .85rem; color: var(--dim); text-align: left; } .hint:hover { color: var(--fg); }
select { font: inherit; color: inherit; background: var(--card); padding: .3rem .4rem;
  border: 1px solid var(--line); border-radius: .5rem; }

.question { font-size: 1.15rem; font-weight: 650; letter-spacing: -.01em; overflow-wrap: anywhere; }
.finding { display: flex; gap: .8rem; align-items: center; min-height: 3.4rem; margin: .3rem 0 .5rem;
  font-size: 1.12rem; line-height: 1.3; color: var(--dim); }
.finding b { color: var(--fg); font-size: 3.1rem; line-height: 1; letter-spacing: -.04em; font-weight: 750; }
.finding b:empty { display: none; } .finding b.shared { color: var(--shared); background: none; }
.finding b.local { color: var(--local); background: none; }
.race { display: grid; grid-template-columns: minmax(7rem, 11.5rem) minmax(0, 1fr) 6rem; gap: .5rem .9rem;
  align-items: center; margin-top: .8rem; }
.race .name { font-weight: 650; overflow-wrap: break-word; min-width: 0; }
.race .name small { display: block; font-weight: 450; color: var(--dim); font-size: .78rem; line-height: 1.15;
  min-height: 1.15em; }
.track { contain: strict; height: 2.1rem; background: var(--soft); border-radius: .4rem; overflow: hidden; }
.fill { height: 100%; background: var(--computed); transform-origin: 0 50%; transform: scaleX(0);
  }
.fill.shared { background: var(--shared); } .fill.local { background: var(--local); } .fill.failed {
  background: var(--bad); }
.clock { contain: layout paint; font-size: 1.75rem; font-weight: 700; text-align: right; white-space: nowrap;
  letter-spacing: -.02em; font-variant-numeric: tabular-nums; line-height: 1.1; }
.clock small { font-size: .55em; font-weight: 500; color: var(--dim); margin-left: .2em; letter-spacing: 0; }
.lanes { display: grid; grid-template-columns: minmax(0, 1fr); gap: 1.1rem;
  margin-top: 1.1rem; border-top: 1px solid var(--line); padding-top: 1rem; }
.lanes.of-2, .lanes.of-4 { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.lanes.of-3 { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.lane { min-width: 0; display: grid; grid-template-rows: auto auto auto 1fr; gap: .4rem; align-content: start; }
.lane .head { display: flex; justify-content: space-between; gap: .5rem; align-items: baseline; font-weight: 650; }
.verdict { font-size: .85rem; font-weight: 700; letter-spacing: .04em; color: var(--dim); white-space: nowrap; }
.verdict.tone-shared { color: var(--shared); } .verdict.tone-local { color: var(--local); }
.verdict.tone-computed { color: var(--dim); } .verdict.tone-bad { color: var(--bad); }
.verdict.tone-warn { color: var(--warn); }
.source { display: flex; height: 1.5rem; border-radius: .3rem; overflow: hidden; background: var(--soft); }
.source i { display: block; width: 0; } .computed { background: var(--computed); }
.local { background: var(--local); } .shared { background: var(--shared); }
.key { display: flex; flex-wrap: wrap; gap: 0 .9rem; font-size: .82rem; min-height: 1.45em; color: var(--dim);
  font-variant-numeric: tabular-nums; align-content: start; }
.key b { color: var(--fg); font-weight: 650; } .key span::before { content: ""; display: inline-block; width: .65em;
  height: .65em; border-radius: .15em; margin-right: .35em; background: currentColor; }
.key .k-computed::before { background: var(--computed); } .key .k-local::before { background: var(--local); }
.key .k-shared::before, .key .k-l1::before { background: var(--shared); }
.key .k-l2::before { background: repeating-linear-gradient(-45deg, var(--shared) 0 .15rem, var(--card) .15rem .25rem); }
.answer { min-height: 6.2em; max-height: 6.2em; overflow-y: auto; white-space: pre-wrap; overflow-wrap: break-word;
  background: var(--soft); border-radius: .5rem; padding: .6rem .8rem; font-size: 1.05rem; line-height: 1.4; }
.answer.whole { max-height: 24em; }
.why { font-size: .82rem; color: var(--warn); overflow-wrap: anywhere; }
.empty { padding: 1.6rem 1.4rem; color: var(--dim); } .empty > b { color: var(--fg); font-size: 1.5rem; display: block;
  letter-spacing: -.02em; }
.story { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 14rem), 1fr)); gap: 1rem;
  list-style: none; counter-reset: step; padding: 0; margin: 1.2rem 0; }
.story li { counter-increment: step; background: var(--soft); border-top: .4rem solid var(--computed);
  border-radius: .5rem; padding: .9rem 1rem; min-height: 9rem; display: grid; gap: .3rem; align-content: start; }
.story li.shared { border-color: var(--shared); background: var(--soft); } .story li.computed {
  background: var(--soft); }
.story b { color: var(--fg); font-size: 1.1rem; } .story b::before { content: counter(step) ". "; color: var(--dim); }

.paper { position: sticky; top: .8rem; display: grid; gap: .7rem; max-height: calc(100vh - 1.6rem);
  grid-template-rows: auto auto auto auto minmax(8rem, 1fr); }
.paper h2 { font-weight: 700; font-size: 1.15rem; overflow-wrap: anywhere; }
.facts { display: flex; gap: 0 1.1rem; flex-wrap: wrap; } .facts b { font-size: 1.25rem; letter-spacing: -.02em; }
.text { overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere; font: .88rem/1.55 Georgia, "Times New Roman",
  serif; border-top: 1px solid var(--line); padding-top: .7rem; min-height: 8rem; }
.known { display: flex; gap: .35rem; flex-wrap: wrap; align-content: start; min-height: 3.5rem; }
.known span { border-radius: .35rem; padding: .05rem .5rem; font-size: .82rem; color: var(--on); font-weight: 600; }
details { margin-top: .4rem; } summary { cursor: pointer; color: var(--dim); font-size: .85rem; list-style: none; }
summary::before { content: "\\25b8  "; } [open] > summary::before { content: "\\25be  "; }

.q-dialog .card { width: min(92vw, 44rem); max-width: none !important; display: grid; gap: .8rem; color: var(--fg);
  box-shadow: none; }
.drop { width: 100% !important; max-height: none !important; background: var(--soft) !important; box-shadow: none
  !important; border: 2px dashed var(--dim); border-radius: .7rem !important; color: var(--dim); min-height: 7rem; }
.drop .q-uploader__header { background: none !important; color: inherit; } .drop .q-uploader__list,
.drop .q-uploader__subtitle { display: none; }
.paste { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--dim); border-radius: .5rem;
  padding: .6rem .8rem; width: 100%; resize: vertical; }
.message { min-height: 3em; white-space: pre-wrap; overflow-wrap: anywhere; }

table.grid { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } .grid th { text-align: left; font-size: .82rem; color: var(--dim); font-weight: 600; }
.grid th, .grid td { padding: .4rem 1rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: baseline; }
.grid td { white-space: nowrap; } .grid .r { text-align: right; }
.grid .why { white-space: normal; min-width: 18rem; }
.chart { width: 100%; height: 22rem; }
.bar { height: .8rem; background: var(--soft); border-radius: .4rem; overflow: hidden; }
.bar > div { height: 100%; background: var(--fg); width: 0; }
iframe.report { width: 100%; height: 80vh; border: 1px solid var(--line); border-radius: .6rem; color-scheme: light; }
.body--dark iframe.report { color-scheme: dark; }
a { color: inherit; text-underline-offset: .2em; }
@media (min-width: 1700px) { .lanes.of-4 { grid-template-columns: repeat(4, minmax(0, 1fr)); } }
@media (max-width: 1080px) { .columns { grid-template-columns: minmax(0, 1fr); }
  .paper { position: static; max-height: none; grid-template-rows: none; } .paper .text { height: 18rem; } }
@media (max-width: 640px) { .lanes.of-2, .lanes.of-3, .lanes.of-4 { grid-template-columns: minmax(0, 1fr); }
  .line { flex-wrap: wrap; } .choose .go { flex: 1 0 100%; } .line .q-field { flex: 1 0 100%; } .go { flex: 1; }
  .fleet { order: 3; flex-basis: 100%; } .pill { font-size: .75rem; padding: .1rem .5rem; } .tabs { flex: 1; }
  .top { gap: .4rem; } .tab { padding: .3rem .5rem; font-size: .9rem; }
  .finding { flex-direction: column; align-items: start; gap: .3rem; }
  .finding b { font-size: 2.4rem; } .chip { font-size: .95rem; }
  .race { grid-template-columns: minmax(0, 1fr) auto; gap: .1rem .6rem; grid-auto-flow: dense; }
  .race .track { grid-column: 1 / -1; height: 1.3rem; margin-bottom: .5rem; } .race .clock { grid-column: 2; }
  .strip .flow { min-width: 4rem; } .grid th, .grid td { padding-right: .55rem; }
  .question.grow { flex-basis: 100%; } .history .grid tr > :first-child { display: none; }
  .card { padding: .8rem .9rem; } .finding, .question { font-size: 1.05rem; } }
"""

SCRIPT = """
(() => {
  const now = () => performance.now() / 1000;
  const scales = new Map();
  const draw = () => {
    for (const race of document.querySelectorAll(".race")) {
      if (race._settled) continue;
      const bars = [...race.querySelectorAll(".fill")].map((fill) => {
        const { phase, elapsed, ttft } = fill.dataset;
        if (phase === "sent") fill._since ??= now() - Number(elapsed || 0);
        if (ttft) fill._value = Number(ttft);
        else if (phase === "sent") fill._value = Math.max(0, now() - fill._since);
        return [fill, fill._value || 0, ttft, phase === "failed"];
      });
      const most = Math.max(...bars.map((bar) => bar[1]));
      let scale = scales.get(race.id) || 1;
      while (most > scale * 0.98) scale *= 1.6;
      race._settled = bars.every(([, , ttft, failed]) => ttft || failed);
      if (race._settled && most > 0) scale = most;
      scales.set(race.id, scale);
      for (const [fill, value, ttft] of bars) {
        fill.style.transform = `scaleX(${Math.min(1, value / scale)})`;
        const said = ttft ? value.toFixed(value < 9.95 ? 2 : 1) : value ? value.toFixed(1) : "\\u2013";
        const clock = document.getElementById(fill.dataset.clock);
        if (clock && clock.firstElementChild.textContent !== said) clock.firstElementChild.textContent = said;
      }
    }
  };
  // Quasar fits a field to its text when that changes. Its lines change with the window, too.
  const grow = () => {
    for (const field of document.querySelectorAll("textarea.q-field__native")) {
      if (!field.clientWidth) continue;
      field.style.height = "1px";
      field.style.height = `${field.scrollHeight}px`;
    }
  };
  addEventListener("resize", grow);
  document.addEventListener("toggle", grow, true);  // one that was hidden meanwhile
  // Five times a second: drawing every frame takes processor time from engines that share this machine.
  setInterval(draw, 200);
})();
"""
