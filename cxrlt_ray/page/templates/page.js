"use strict";
// Sorting, filtering and folding. Without it the page holds the same content: all that is made here is controls.
const value = (row, column) => {
  const number = row.cells[column].querySelector("data");
  return number ? Number(number.value) : row.cells[column].textContent.trim();
};
const isMissing = (item) => item === "" || item === "–";

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("num");
      const was = head.getAttribute("aria-sort");
      const up = was ? was === "descending" : !numeric;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row, place) => ({ row, place, key: value(row, column) }));
      rows.sort((a, b) => {
        if (isMissing(a.key) || isMissing(b.key)) return isMissing(a.key) - isMissing(b.key) || a.place - b.place;
        const order = typeof a.key === "number" && typeof b.key === "number"
          ? a.key - b.key
          : String(a.key).localeCompare(String(b.key), "en", { numeric: true });
        return (up ? order : -order) || a.place - b.place;
      });
      body.append(...rows.map((item) => item.row));
    });
  });
}

function labelled(text, control) {
  const label = document.createElement("label");
  label.append(text + " ", control);
  return label;
}

function filterable(table) {
  const rows = [...table.tBodies[0].rows];
  const tools = document.createElement("div");
  const count = document.createElement("span");
  const words = document.createElement("input");
  const choice = document.createElement("select");
  const facet = [...table.tHead.rows[0].cells].findIndex((head) => head.textContent.trim() === table.dataset.facet);
  tools.className = "tools";
  count.setAttribute("role", "status");
  words.type = "search";
  const show = () => {
    const wanted = words.value.trim().toLowerCase();
    let left = 0;
    rows.forEach((row) => {
      const fits = row.textContent.toLowerCase().includes(wanted)
        && (!choice.value || row.cells[facet].textContent.trim() === choice.value);
      row.hidden = !fits;
      left += fits;
    });
    count.textContent = left === rows.length ? `${left} rows` : `${left} of ${rows.length} rows`;
  };
  tools.append(labelled("Filter", words));
  if (facet >= 0) {
    const kinds = new Set(rows.map((row) => row.cells[facet].textContent.trim()));
    choice.append(new Option("all", ""), ...[...kinds].map((kind) => new Option(kind, kind)));
    tools.append(labelled(table.dataset.facet[0].toUpperCase() + table.dataset.facet.slice(1), choice));
  }
  tools.append(count);
  words.addEventListener("input", show);
  choice.addEventListener("change", show);
  show();
  table.closest(".scroll").before(tools);
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("table[data-filter]").forEach(filterable);

const folds = [...document.querySelectorAll("details")];
if (folds.length) {
  const all = document.createElement("button");
  all.type = "button";
  all.className = "fold";
  all.textContent = "Unfold all";
  all.addEventListener("click", () => {
    const open = all.textContent === "Unfold all";
    folds.forEach((fold) => { fold.open = open; });
    all.textContent = open ? "Fold all" : "Unfold all";
  });
  document.querySelector("nav").append(all);
}
let before = [];
window.addEventListener("beforeprint", () => {
  before = folds.filter((fold) => !fold.open);
  before.forEach((fold) => { fold.open = true; });
});
window.addEventListener("afterprint", () => before.forEach((fold) => { fold.open = false; }));
