"""A sheet for a reader as one HTML page that works without a network: filled in by clicks, it exports the CSV.

Nothing is loaded from elsewhere (the page's own policy forbids it); what is filled in is kept in the browser until it
is exported.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence

_STYLE = """
body { font: 16px/1.45 sans-serif; margin: 0 auto; max-width: 76rem; padding: 1rem; color: #222; background: #fff; }
header { position: sticky; top: 0; background: #fff; border-bottom: 1px solid #999; padding: .5rem 0; z-index: 1; }
h1 { font-size: 1.3rem; margin: 0; }
header p { margin: .3rem 0; }
article > div:first-child { position: sticky; top: 9rem; align-self: start; } /* the report beside its last finding */
article { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; border-bottom: 1px solid #999; padding: 1rem 0; }
pre { white-space: pre-wrap; font: inherit; margin: 0; }
fieldset { border: 0; margin: 0; padding: .1rem 0; display: flex; align-items: baseline; }
legend { float: left; width: 15rem; padding: 0; }
label { padding: 0 .5rem; white-space: nowrap; }
.done { font-weight: bold; display: block; padding: .5rem 0; }
article.read { background: #eef6ee; }
button { font: inherit; padding: .3rem .8rem; }
@media (max-width: 60rem) {
  article { grid-template-columns: 1fr; }
  article > div:first-child { position: static; }
}
"""

_SCRIPT = """
const sheet = JSON.parse(document.getElementById("sheet").textContent);
const key = "cxrlt_ray sheet " + sheet.id;
const choices = [["", "not said"], ["1", "yes"], ["0", "no"], ["-1", "uncertain"]];
let saved = {};
try { saved = JSON.parse(localStorage.getItem(key)) || {}; } catch (error) { saved = {}; }
const of = (item) => (saved[item] = saved[item] || { read: "", labels: {} });
function keep() {
  try { localStorage.setItem(key, JSON.stringify(saved)); } catch (error) { /* export still works */ }
  const done = sheet.items.filter((row) => of(row.item).read).length;
  document.getElementById("count").textContent = done + " of " + sheet.items.length + " read";
}
function field(row, finding) {
  const set = document.createElement("fieldset"), legend = document.createElement("legend");
  legend.textContent = finding.name; legend.title = finding.definition; set.append(legend);
  for (const [value, text] of choices) {
    const label = document.createElement("label"), input = document.createElement("input");
    input.type = "radio"; input.name = row.item + " " + finding.name; input.value = value;
    input.checked = (of(row.item).labels[finding.name] || "") === value;
    input.addEventListener("change", () => { of(row.item).labels[finding.name] = value; keep(); });
    label.append(input, " " + text); set.append(label);
  }
  return set;
}
function article(row) {
  const part = document.createElement("article"), left = document.createElement("div");
  const right = document.createElement("div"), title = document.createElement("h2");
  title.textContent = row.item + (row.study ? ", study " + row.study : "");
  const text = document.createElement("pre"); text.textContent = row.report || "";
  left.append(title, text);
  for (const finding of sheet.findings) right.append(field(row, finding));
  const label = document.createElement("label"), box = document.createElement("input");
  label.className = "done"; box.type = "checkbox"; box.checked = of(row.item).read === "1";
  part.classList.toggle("read", box.checked);
  box.addEventListener("change", () => {
    of(row.item).read = box.checked ? "1" : ""; part.classList.toggle("read", box.checked); keep();
  });
  label.append(box, " read to the end"); right.append(label); part.append(left, right);
  return part;
}
function cell(text) { return '"' + String(text).replaceAll('"', '""') + '"'; }
function csv() {
  const names = sheet.findings.map((finding) => finding.name);
  const rows = [["item", "read", ...names]];
  for (const row of sheet.items) {
    const own = of(row.item);
    rows.push([row.item, own.read, ...names.map((name) => own.labels[name] || "")]);
  }
  return rows.map((row) => row.map(cell).join(",")).join("\\n") + "\\n";
}
document.getElementById("export").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  link.download = sheet.reader + ".csv"; link.click(); URL.revokeObjectURL(link.href);
});
document.querySelector("main").append(...sheet.items.map(article));
keep();
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><title>{title}</title><style>{style}</style></head>
<body><header><h1>{title}</h1>
<p>{help} <span id="count"></span> <button id="export" type="button">Export CSV</button></p></header>
<main></main><noscript>This page needs JavaScript: fill in the CSV file beside it instead.</noscript>
<script type="application/json" id="sheet">{sheet}</script><script>{script}</script></body></html>
"""

HELP = (
    "For each report say what it states of each finding: yes, no, uncertain, or not said. Stable, unchanged and healed "
    "findings are there: yes. A finding's definition shows when the pointer rests on its name. Tick "
    "“read to the end” for each report; what is not ticked does not count. Answers stay in this browser "
    "until you export them."
)


def page(reader: str, sheet_id: str, items: Sequence[Mapping[str, str]], findings: Mapping[str, str]) -> str:
    """The page of a reader. items: item, report and perhaps study of each row; findings: name -> definition."""
    content = {
        "id": sheet_id,
        "reader": reader,
        "items": list(items),
        "findings": [{"name": name, "definition": text} for name, text in findings.items()],
    }
    # < ends no script element in JSON that is written so
    sheet = json.dumps(content).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    title = html.escape(f"Reading sheet of {reader}")
    return _PAGE.format(title=title, style=_STYLE, help=html.escape(HELP), sheet=sheet, script=_SCRIPT)
