"""Style and script of the page.

Nothing comes from another server: fonts are the system's.
"""

CSS = """
:root, .gradio-container { --pg-wanted: #0072b2; --pg-unwanted: #d55e00; --pg-ink: #1b1f24;
  --pg-dim: #5c6570; --pg-line: #d9dee4; --pg-soft: #f4f6f8; --pg-page: #ffffff;
  --pg-lit: #1b1f24; }
.dark, .dark .gradio-container { --pg-wanted: #3fa9f5; --pg-unwanted: #ff8a3d; --pg-ink: #e6e9ec;
  --pg-dim: #9aa4ae; --pg-line: #343b43; --pg-soft: #1c2228; --pg-page: #14181c;
  --pg-lit: #ffffff; }
.gradio-container { width: 100%; max-width: 82rem !important; margin: 0 auto !important; }
.gradio-container main { width: 100%; }
.gradio-container :focus-visible { outline: 3px solid var(--pg-wanted); outline-offset: 1px; }
footer { display: none !important; }
#pg-error:not(:has(.pg-error)), #pg-facts:not(:has(dl)), #pg-figures:not(:has(div.pg-figures)),
  .pg-empty:not(:has(p)) { display: none !important; }
.pg-head h1 { font-size: 1.4rem; margin: 0; font-weight: 650; }
.pg-head p { margin: .15rem 0 0; color: var(--pg-dim); font-size: .92rem; }
.pg-two { display: grid; gap: .9rem; grid-template-columns: 1fr 1fr; color: var(--pg-ink); }
.pg-side { border: 1px solid var(--pg-line); border-radius: 10px; padding: .7rem .95rem .9rem;
  background: var(--pg-page); min-width: 0; min-height: 9.5rem; }
.pg-side h3 { font-size: .8rem; margin: 0 0 .45rem; color: var(--pg-dim); font-weight: 650;
  overflow-wrap: anywhere; }
.pg-side p { margin: 0 0 .5rem; line-height: 1.85; white-space: pre-wrap;
  overflow-wrap: break-word; }
.pg-side .pg-said { background: var(--pg-soft); border-radius: 8px; padding: .25rem .6rem;
  line-height: 1.5; }
.tok { border-bottom: 3px solid var(--was, transparent); background: var(--now, transparent);
  padding: 1px 0; cursor: pointer; }
.tok.on { outline: 2px solid var(--pg-lit); outline-offset: 0; border-radius: 2px; }
.pg-caret { display: inline-block; width: .5em; height: 1em; background: var(--pg-dim);
  vertical-align: text-bottom; animation: pg-blink 1s steps(2) infinite; }
@keyframes pg-blink { 50% { opacity: 0; } }
@media (prefers-reduced-motion: reduce) { .pg-caret { animation: none; } }
#pg-tip { position: fixed; z-index: 1000; background: var(--pg-ink); color: var(--pg-page);
  font: 500 .8rem/1.4 system-ui, sans-serif; padding: .3rem .6rem; border-radius: 6px;
  max-width: min(24rem, 92vw); pointer-events: none; display: none;
  font-variant-numeric: tabular-nums; }
.pg-facts { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: .1rem 0;
  color: var(--pg-ink); }
.pg-facts div { min-width: 8rem; } .pg-facts dt { color: var(--pg-dim); font-size: .78rem; }
.pg-facts dd { margin: 0; font-size: 1.15rem; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.pg-facts small { font-weight: 400; font-size: .8rem; color: var(--pg-dim); }
p.pg-key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .8rem;
  margin: .1rem 0 0; }
p.pg-key span { color: var(--pg-dim); }
.pg-key i { display: inline-block; width: 1.1em; height: .95em; vertical-align: -.12em;
  margin-right: .35em; border-radius: 2px; }
.pg-figures { display: grid; gap: 1rem 1.4rem; grid-template-columns: repeat(auto-fit,
  minmax(min(100%, 19rem), 1fr)); }
.pg-figure { margin: 0; min-width: 0; color: var(--pg-ink); }
.pg-figure figcaption { color: var(--pg-dim); font-size: .8rem; line-height: 1.45; }
.pg-figure figcaption b { color: var(--pg-ink); font-size: .86rem; }
.pg-figure svg { width: 100%; height: auto; display: block; max-width: 38rem; margin: .3rem 0; }
.pg-figure text { fill: var(--pg-dim); font: 11px system-ui, sans-serif; }
.pg-figure polyline, .pg-figure line { fill: none; stroke: currentColor; }
.pg-figure .zero { stroke: var(--pg-dim); stroke-dasharray: 4 3; }
.pg-figure .level { stroke-width: 1.6; } .pg-figure .arrow { stroke-width: 1; opacity: .45; }
.pg-figure.small svg { max-width: 15rem; }
.way { color: var(--pg-ink); opacity: .3; } .way polyline { stroke-width: 1.2; }
.way circle { fill: currentColor; } .way .from { fill: var(--pg-page); stroke: currentColor; }
.way.on { opacity: 1; } .way.on polyline { stroke-width: 3; stroke: var(--pg-lit); }
.pg-error { border-left: 4px solid var(--pg-unwanted); background: var(--pg-soft); margin: 0;
  color: var(--pg-ink); padding: .5rem .8rem; border-radius: 4px; font-weight: 550; }
p.pg-note, .pg-wait { color: var(--pg-dim) !important; font-size: .88rem; margin: 0; }
.pg-table { border-collapse: collapse; font-size: .86rem; color: var(--pg-ink); }
.pg-table th, .pg-table td { text-align: right; padding: .25rem .8rem .25rem 0;
  border-bottom: 1px solid var(--pg-line); font-variant-numeric: tabular-nums; }
.pg-table .best td { font-weight: 700; }
.pg-report { width: 100%; height: 75vh; border: 1px solid var(--pg-line); border-radius: 8px;
  background: Canvas; }
@media (max-width: 44rem) { .pg-two { gap: .5rem; } .pg-side { padding: .6rem .7rem; }
  .gradio-container { padding: .5rem !important; } }
@media (max-width: 30rem) { .pg-two { grid-template-columns: 1fr; }
  .pg-side { min-height: 5rem; } }
"""

# A token that is pointed at, touched or reached by keys lights up, with its way in each figure.
# One token of a text is a stop of the Tab key; the arrow keys go on from it.
HEAD = """
<script>
(() => {
  let tip;
  const choose = (token) => {
    document.querySelectorAll(".tok.on, .pg-figures .way.on").forEach(
      (other) => other.classList.remove("on"));
    if (!tip) {
      tip = document.createElement("div");
      tip.id = "pg-tip";
      tip.setAttribute("role", "status");
      document.querySelector(".gradio-container").append(tip);
    }
    if (!token) { tip.style.display = "none"; return; }
    token.classList.add("on");
    if (token.closest(".pg-text").dataset.side === "1")
      document.querySelectorAll(`.pg-figures .way[data-way="${token.dataset.i}"]`).forEach(
        (way) => { way.classList.add("on"); way.parentNode.append(way); });
    tip.textContent = token.dataset.tip;
    tip.style.display = "block";
    const box = token.getBoundingClientRect(), own = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(box.left, innerWidth - own.width - 4)) + "px";
    tip.style.top = (box.top > own.height + 12 ? box.top - own.height - 6 : box.bottom + 6) + "px";
  };
  const of = (event) => event.target.closest ? event.target.closest(".tok") : null;
  for (const kind of ["mouseover", "focusin", "click"])
    document.addEventListener(kind, (event) => { if (of(event)) choose(of(event)); });
  document.addEventListener("mouseout", (event) => {
    if (of(event) && tip) tip.style.display = "none"; });
  document.addEventListener("focusout", (event) => { if (of(event)) choose(null); });
  document.addEventListener("scroll", () => { if (tip) tip.style.display = "none"; }, true);
  document.addEventListener("keydown", (event) => {
    const token = of(event);
    if (!token) return;
    if (event.key === "Escape") { token.blur(); choose(null); return; }
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    const next = step && (step > 0 ? token.nextElementSibling : token.previousElementSibling);
    if (next && next.classList.contains("tok")) {
      event.preventDefault();
      token.tabIndex = -1; next.tabIndex = 0; next.focus();
    }
  });
})();
</script>
"""

KEY = (
    '<p class="pg-key"><span><i style="background:color-mix(in srgb,var(--pg-wanted) 55%,'
    'transparent)"></i>wanted, h &gt; 0</span><span><i style="background:color-mix(in srgb,'
    'var(--pg-unwanted) 55%,transparent)"></i>unwanted, h &lt; 0</span><span>background: after '
    "steering; underline: before</span><span>point at a token, or use Tab and the arrow keys"
    "</span></p>"
)
