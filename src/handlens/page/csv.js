// Rows as CSV.

/** Rows of cells as CSV: each quoted, and none taken for a formula by a spreadsheet; numbers stay numbers. */
export function csv(rows) {
  const harmless = (text) => (/^-?[\d.]+$/.test(text) ? text : text.replace(/^(?=[=+\-@\t\r])/, "'"));
  const cell = (value) => `"${harmless(String(value ?? "")).replaceAll('"', '""')}"`;
  return rows.map((cells) => `${cells.map(cell).join(",")}\r\n`).join("");
}
