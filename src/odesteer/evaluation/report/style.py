"""CSS of the HTML report."""

# Text and background reach 4.5:1 in both themes; --better and --worse also differ in lightness.
CSS = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1b1f24; --dim: #5c6570;
  --line: #d9dee4; --soft: #f4f6f8; --better: #00598c; --worse: #a13d00; --accent: #0072b2;
  --blue: #0072b2; --plum: #aa4499; --violet: #8c6bb1; }
@media (prefers-color-scheme: dark) { :root { --page: #14181c; --ink: #e6e9ec; --dim: #9aa4ae;
  --line: #343b43; --soft: #1c2228; --better: #6cbcf2; --worse: #ff9d66; --accent: #56b4e9;
  --blue: #5b8cff; --plum: #d07fc2; --violet: #b39bdb; } }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; margin: 0; background: var(--page);
  color: var(--ink); overflow-wrap: break-word; }
main, header, footer { max-width: 78rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 1.6rem; } footer { padding-bottom: 3rem; color: var(--dim); }
h1 { font-size: 1.65rem; line-height: 1.25; margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .4rem; }
p, ul { max-width: 46rem; } .dim, figcaption, .notes { color: var(--dim); font-size: .86rem; }
a { color: var(--accent); } nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem;
  list-style: none; padding: 0; margin: .6rem 0 0; font-size: .92rem; max-width: none; }
.skip { position: absolute; left: -99rem; } .skip:focus { position: static; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.warning { border-left: 4px solid var(--worse); background: var(--soft); padding: .6rem .9rem;
  font-weight: 600; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: separate; border-spacing: 0; font-size: .86rem; width: 100%; }
caption { text-align: left; padding: .6rem .7rem; font-weight: 600; }
th, td { padding: .38rem .7rem; border-top: 1px solid var(--line); text-align: left;
  vertical-align: top; }
thead th { vertical-align: bottom; color: var(--dim); font-weight: 600; border-top: 0; }
th[scope=row] { font-weight: 600; position: sticky; left: 0; background: var(--page);
  min-width: 9rem; max-width: 17rem; }
th[scope=row] small { display: block; color: var(--dim); font-weight: 400; font-size: .78rem; }
th[scope=rowgroup] { background: var(--soft); color: var(--dim); font-weight: 600;
  padding: .3rem .7rem; } th[scope=rowgroup] span { position: sticky; left: .7rem; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
thead th.n { white-space: normal; min-width: 5.5rem; }
td small { display: block; color: var(--dim); font-size: .78rem; }
td.better small.change { color: var(--better); font-weight: 600; }
td.worse small.change { color: var(--worse); font-weight: 600; }
td.changed small.change { color: var(--ink); font-weight: 600; }
tr.paper th, tr.paper td { font-style: italic; }
.tag { font: 600 .72rem/1 system-ui, sans-serif; border: 1px solid var(--line);
  border-radius: 99px; padding: .1rem .45rem; color: var(--dim); white-space: nowrap; }
.figures { display: grid; gap: 1.4rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; } figure svg { width: 100%; height: auto; max-width: 34rem; display: block; }
figcaption b { color: var(--ink); }
details { border: 1px solid var(--line); border-radius: 8px; margin: .5rem 0; }
summary { cursor: pointer; padding: .5rem .9rem; font-weight: 600; }
details > div { padding: 0 .9rem .9rem; } details .scroll { border-radius: 6px; }
.pair { border-top: 1px solid var(--line); padding: .8rem 0; } .pair:first-child { border-top: 0; }
.pair > p { margin: 0 0 .5rem; } .pair details { background: var(--soft); }
.two { display: grid; gap: .8rem; grid-template-columns: 1fr 1fr; }
.two > div { background: var(--soft); border-radius: 6px; padding: .6rem .8rem; min-width: 0; }
.pair details .two > div { background: var(--page); }
.two h4 { margin: 0 0 .3rem; font-size: .8rem; color: var(--dim); }
.text { white-space: pre-wrap; } .mono { font-family: ui-monospace, monospace; font-size: .8rem;
  overflow-wrap: anywhere; } pre { overflow-x: auto; font-size: .8rem; margin: 0; }
@media (max-width: 40rem) { .two { grid-template-columns: 1fr; } h1 { font-size: 1.35rem; }
  th, td { padding: .34rem .5rem; } th[scope=row] { min-width: 7.5rem; max-width: 11rem; } }
@media print { .scroll { overflow: visible; border: 0; } nav { display: none; }
  table { font-size: .7rem; } tr, figure { break-inside: avoid; } }
"""
