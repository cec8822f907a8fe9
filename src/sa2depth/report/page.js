"use strict";
// Sort and search the table of images. The table also works without this script.
(() => {
  const table = document.getElementById("images");
  if (!table) return;
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows];

  const key = (row, column, isText) => {
    const text = row.cells[column].textContent;
    if (isText) return text;
    const value = Number(text.replace("\u2212", "-"));
    return Number.isFinite(value) ? value : null;
  };

  const sort = (column) => {
    const head = heads[column];
    const isText = head.dataset.kind === "text";
    // the first click sorts names from A and numbers from the largest
    const now = head.getAttribute("aria-sort");
    const up = now ? now === "descending" : isText || head.dataset.kind === "index";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const keys = new Map(rows.map((row) => [row, key(row, column, isText)]));
    const compare = isText ? new Intl.Collator(undefined, { numeric: true }).compare : (a, b) => a - b;
    rows.sort((a, b) => {
      const [x, y] = [keys.get(a), keys.get(b)];
      if (x === null || y === null) return (x === null) - (y === null); // "not a number" stays at the end
      return up ? compare(x, y) : compare(y, x);
    });
    body.append(...rows);
  };

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column));
    head.append(button);
  });

  const search = document.createElement("input");
  const found = document.createElement("output");
  search.type = "search";
  search.placeholder = "Search ids";
  search.setAttribute("aria-label", "Search ids");
  const column = heads.findIndex((head) => head.dataset.kind === "text");
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    let count = 0;
    for (const row of rows) {
      row.hidden = !row.cells[column].textContent.toLowerCase().includes(wanted);
      count += !row.hidden;
    }
    found.textContent = wanted ? `${count} of ${rows.length}` : "";
  });
  document.getElementById("search").append(search, found);
})();
