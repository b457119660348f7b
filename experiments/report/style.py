"""How the report looks: light and dark, wide and narrow, on screen and on paper."""

STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1c1f23; --soft: #59626d;
  --line: #d9dee4; --panel: #f5f7f9; --link: #005a9c; --good: #00704f; --bad: #b23b00;
  --idle: #59626d; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --text: #e4e7ea; --soft: #9aa4af;
  --line: #343b43; --panel: #1d2226; --link: #7cc0f5; --good: #4cc79a; --bad: #f79a66;
  --idle: #9aa4af; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; }
body { margin: 0; background: var(--page); color: var(--text); overflow-wrap: break-word;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
.layout { display: grid; grid-template-columns: minmax(0, 1fr); gap: 0 2.5rem; max-width: 84rem;
  margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 0 0 .25rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p { margin: .5rem 0; max-width: 48rem; }
ul { margin: .5rem 0; padding-left: 1.2rem; max-width: 48rem; }
a { color: var(--link); }
code, pre, kbd { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  font-size: .88em; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0;
  padding: .6rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
section { border-top: 1px solid var(--line); margin-top: 2.5rem; padding-top: 1.5rem; }
.name { margin: 0 0 .75rem; }
.lead, .note { color: var(--soft); }
.toc { font-size: .9rem; }
.toc h2 { font-size: 1rem; }
.toc ol { list-style: none; margin: .25rem 0 1.5rem; padding: 0; columns: 15rem; }
.toc li { break-inside: avoid; padding: .12rem 0; }
.status { font-weight: 600; white-space: nowrap; }
.passed { color: var(--good); }
.failed, .error, .unreadable { color: var(--bad); }
.not-run { color: var(--idle); font-weight: 400; }
.mark { border: 1px solid currentColor; border-radius: 1rem; color: var(--bad); font-size: .78rem;
  margin-left: .4rem; padding: .05rem .5rem; white-space: nowrap; }
.warning { border-left: 4px solid var(--bad); background: var(--panel); margin: .75rem 0;
  padding: .5rem .8rem; }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .92rem; min-width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .7rem; text-align: left;
  vertical-align: top; }
th:first-child { padding-left: .2rem; }
thead th { border-bottom: 2px solid var(--line); color: var(--soft); font-weight: 600;
  white-space: nowrap; }
tbody th { font-weight: 400; min-width: 11rem; }
.what { min-width: 11rem; }
tbody th a { font-weight: 600; }
.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.small { color: var(--soft); display: block; font-size: .85rem; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0; }
figure { margin: 0; max-width: 100%; }
figure img { background: #fff; border: 1px solid var(--line); border-radius: 6px; display: block;
  height: auto; max-width: 100%; padding: 6px; }
figcaption { color: var(--soft); font-size: .85rem; margin-top: .25rem; }
details { border: 1px solid var(--line); border-radius: 6px; margin: 1rem 0; padding: .5rem .8rem; }
summary { cursor: pointer; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .25rem 1rem;
  margin: .5rem 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (min-width: 70rem) {
  .layout { grid-template-columns: 15rem minmax(0, 1fr); padding: 2.5rem 2rem 5rem; }
  .toc { align-self: start; max-height: calc(100vh - 2rem); overflow-y: auto; position: sticky;
    top: 1rem; }
  .toc ol { columns: auto; }
}
@media (max-width: 40rem) {
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dd { margin-bottom: .5rem; }
  figure { overflow-x: auto; }
  figure img.wide { max-width: max(100%, 36rem); }
  thead { height: 1px; overflow: hidden; position: absolute; width: 1px; clip-path: inset(50%); }
  table, tbody, tr, th, td { display: block; }
  tr { border-bottom: 1px solid var(--line); padding: .5rem 0; }
  th, td, th:first-child { border: 0; padding: .05rem 0; }
  .number { white-space: normal; }
  td[data-label]::before { color: var(--soft); content: attr(data-label); display: inline-block;
    min-width: 6.5rem; }
}
@media print {
  :root { color-scheme: light; --page: #fff; --text: #000; --soft: #444; --line: #bbb;
    --panel: #f4f4f4; --link: #000; --good: #00563c; --bad: #8a2d00; --idle: #444; }
  body { font-size: 10pt; }
  .layout { display: block; max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  details::details-content { content-visibility: visible; height: auto; }
  figure, tr, pre, .warning { break-inside: avoid; }
  h2, h3, .name { break-after: avoid; }
}
"""
