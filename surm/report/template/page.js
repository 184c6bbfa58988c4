"use strict";

// --- tables -------------------------------------------------------------------------------------------------------

/** A cell's number, else its text. */
const keyOf = (cell) => ("value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim());

/** Order of two keys: numbers before words, nothing last whatever the direction. */
function compare(a, b, direction) {
  if (a === "" || b === "") return (a === "") - (b === "");
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return direction * (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, place) => {
    heading.querySelector("button").addEventListener("click", () => {
      const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      headings.forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      for (const body of table.tBodies) { // of a section each, in the table of claims, below its title
        const rows = [...body.rows].filter((row) => row.cells.length === headings.length);
        const keyed = rows.map((row) => [keyOf(row.cells[place]), row]);
        keyed.sort(([a], [b]) => compare(a, b, direction));
        body.append(...keyed.map(([, row]) => row));
      }
    });
  });
}

// --- links into what is folded --------------------------------------------------------------------------------------

function unfold() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let folded = target?.closest("details"); folded; folded = folded.parentElement.closest("details")) folded.open = true;
  target?.scrollIntoView();
}
addEventListener("hashchange", unfold);
if (location.hash) unfold();
// The contents take the page's whole width on a phone.
if (innerWidth < 1100) document.querySelector("nav details").open = false;
