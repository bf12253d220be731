// The reader's answers: stored in the browser, written to a CSV file and read back from one.

const COLUMNS = ["uid", "verdict", "comment", "reader", "run", "finding"];
const VERDICTS = ["", "accept", "reject"];
const LONGEST = 2000; // characters of a comment
const LARGEST = 10_000_000; // bytes of a file to load

// A text that a spreadsheet would compute gets an apostrophe, which reading takes away: medlt/csv_text.py.
const FORMULA = /^'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/;
const NUMBER = /^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$/;
const isFormula = (text) => FORMULA.test(text) && !NUMBER.test(text);
const escapeCell = (text) => (isFormula(text) ? `'${text}` : text);
const unescapeCell = (text) => (text.startsWith("'") && isFormula(text) ? text.slice(1) : text);

/** Text of a CSV file (RFC 4180, lines end with CRLF). */
function csvText(header, rows) {
  const cell = (value) => (/[",\r\n]/.test(value) ? `"${value.replace(/"/g, '""')}"` : value);
  return [header, ...rows].map((row) => row.map((value) => cell(escapeCell(String(value)))).join(",") + "\r\n").join("");
}

/** Cells of a CSV file (RFC 4180; a byte order mark and any line ends), blank lines left out. */
function csvRows(text) {
  const rows = [];
  let row = [];
  for (const [, quoted, bare, end] of text.replace(/^\ufeff/, "").matchAll(/(?:"((?:[^"]|"")*)"|([^,\r\n]*))(,|\r\n|\r|\n|$)/g)) {
    row.push(quoted === undefined ? bare : quoted.replace(/""/g, '"'));
    if (end === ",") continue;
    if (row.length > 1 || row[0]) rows.push(row);
    row = [];
  }
  return rows;
}

/** Answers in the text of a CSV file, as objects of `COLUMNS`; an Error says what is wrong with it. */
function answersIn(text) {
  const [header = [], ...rows] = csvRows(text);
  const missing = ["uid", "verdict"].find((name) => !header.includes(name));
  if (missing) throw new Error(`it has no column ${missing}`);
  return rows.map((row, number) => {
    const answer = Object.fromEntries(COLUMNS.map((name) => [name, unescapeCell(row[header.indexOf(name)] ?? "")]));
    answer.verdict = answer.verdict.trim().toLowerCase();
    answer.comment = answer.comment.slice(0, LONGEST);
    if (!VERDICTS.includes(answer.verdict)) throw new Error(`answer ${number + 1}: its verdict is not accept or reject`);
    return answer;
  });
}

/** Answers of a page by the id of an image: in the browser's storage, as far as it has one. */
function answersOf(page, store) {
  const key = `medlt answers ${page}`;
  let all = {};
  try { all = JSON.parse(store.read(key)) ?? {}; } catch { /* damaged: begin again */ }
  if (typeof all !== "object" || Array.isArray(all)) all = {};
  return {
    of: (id) => ({ verdict: "", comment: "", ...(Object.hasOwn(all, id) ? all[id] : {}) }),
    set(id, change) {
      all[id] = { ...this.of(id), ...change };
      return store.write(key, JSON.stringify(all));
    },
  };
}

/** Offer a text as a file. */
function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
