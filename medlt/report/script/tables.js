// Tables that their headings sort.

/** Value that a table cell sorts by: its first number, else its text in lower case; null for an empty cell or a dash. */
function sortKey(text) {
  const plain = text.trim().replace(/\u2212/g, "-");
  if (!plain || plain === "\u2013") return null;
  const number = /^[<+]?(-?\d+(?:\.\d+)?)/.exec(plain);
  return number ? Number(number[1]) : plain.toLowerCase();
}

/** Order of two keys: numbers before text, unknown last whatever the direction (1 up, -1 down). */
function compareKeys(a, b, direction) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return direction * (a < b ? -1 : a > b ? 1 : 0);
}

/** Column of each header cell, from rows of {colSpan, rowSpan}: one list a row. */
function headerColumns(rows) {
  const taken = rows.map(() => new Set());
  return rows.map((row, r) => {
    let column = 0;
    return row.map((cell) => {
      while (taken[r].has(column)) column += 1;
      const first = column;
      for (let down = r; down < Math.min(rows.length, r + cell.rowSpan); down += 1)
        for (let across = first; across < first + cell.colSpan; across += 1) taken[down].add(across);
      return first;
    });
  });
}

function cellAt(row, column) {
  let left = 0;
  for (const cell of row.cells) {
    left += cell.colSpan;
    if (column < left) return cell;
  }
  return null;
}

function sortBy(table, head, column) {
  const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of table.tHead.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [row, sortKey(cellAt(row, column)?.textContent ?? "")]);
  const fixed = rows.filter(([row]) => row.classList.contains("fixed"));
  const free = rows.filter(([row]) => !row.classList.contains("fixed"));
  free.sort((a, b) => compareKeys(a[1], b[1], direction));
  body.append(...[...fixed, ...free].map(([row]) => row));
}

function sortable(table) {
  if (!table.tHead || !table.tBodies.length || table.tBodies[0].rows.length < 2) return;
  const heads = [...table.tHead.rows].map((row) => [...row.cells]);
  const columns = headerColumns(heads);
  heads.forEach((cells, r) => cells.forEach((head, c) => {
    if (head.colSpan > 1 || r + head.rowSpan < heads.length || !head.textContent.trim()) return;
    const button = make("button", { type: "button", className: "sort" }, ...head.childNodes);
    button.addEventListener("click", () => sortBy(table, head, columns[r][c]));
    head.replaceChildren(button);
  }));
}
