"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const element = (name, words = "", kind = "") => {
    const made = document.createElement(name);
    if (words) made.textContent = words;
    if (kind) made.className = kind;
    return made;
  };

  // Methods: one pressed button each; what belongs to a hidden method carries data-m and is hidden by a style rule.
  const hidden = new Set();
  const rules = document.getElementById("shown");
  const showMethods = () => {
    rules.textContent = [...hidden].map((id) => `[data-m="${CSS.escape(id)}"]`).join(",") + (hidden.size ? "{display:none!important}" : "");
    for (const button of all("[data-toggle]")) button.setAttribute("aria-pressed", String(!hidden.has(button.dataset.toggle)));
  };
  for (const button of all("[data-toggle]")) {
    button.addEventListener("click", () => {
      const id = button.dataset.toggle;
      if (!hidden.delete(id)) hidden.add(id);
      showMethods();
    });
  }
  document.getElementById("all").addEventListener("click", () => { hidden.clear(); showMethods(); });

  // Tables: a click on a column head sorts by its values, a second one turns the order; empty cells stay last.
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.v !== undefined) return cell.dataset.v === "inf" ? Infinity : Number(cell.dataset.v);
    const words = cell.textContent.trim();
    return words === "–" || words === "reference" || words === "" ? null : words;
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  const sortBy = (table, head, column) => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of all("thead th", table)) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, column), row]);
    rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : (down ? -1 : 1) * compare(a, b)));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };
  for (const table of all("table.sortable")) {
    all("thead th", table).forEach((head, column) => {
      const button = element("button", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      button.addEventListener("click", () => sortBy(table, head, column));
    });
  }

  // Examples.
  const STEP = 10;
  const aligned = (reference, hypothesis, operations) => {
    const said = reference.split(/\s+/).filter(Boolean), recognised = hypothesis.split(/\s+/).filter(Boolean);
    const line = document.createDocumentFragment();
    let i = 0, j = 0;
    for (const operation of operations) {
      const word = operation === "I" ? "" : said[i++];
      const other = operation === "D" ? "" : recognised[j++];
      if (operation === "C") line.append(other);
      else {
        const mark = element("b", operation === "D" ? word : other, operation);
        mark.title = { S: `substituted for “${word}”`, D: "missing", I: "extra" }[operation];
        line.append(mark);
      }
      line.append(" ");
    }
    return line;
  };
  const setUp = (form) => {
    const id = form.dataset.examples;
    const data = JSON.parse(document.getElementById(`${id}-data`).textContent);
    const list = document.getElementById(`${id}-examples`), count = document.getElementById(`${id}-count`);
    const more = document.getElementById(`${id}-more`), field = form.elements;
    let shown = STEP;
    data.items.forEach((item, index) => { item.n = index; });

    const errorsOf = (item) => (field.method.value === "" ? item.h : [item.h[field.method.value]]).filter(Boolean).map((h) => h[2]);
    const sum = (item) => errorsOf(item).reduce((a, b) => a + b, 0);
    const spread = (item) => Math.max(...item.h.filter(Boolean).map((h) => h[2])) - Math.min(...item.h.filter(Boolean).map((h) => h[2]));
    const orders = {
      worst: (a, b) => sum(b) - sum(a) || a.n - b.n,
      apart: (a, b) => spread(b) - spread(a) || a.n - b.n,
      set: (a, b) => a.d - b.d || a.i.localeCompare(b.i),
    };
    const listSpeakers = () => {
      const kept = field.speaker.value;
      const names = new Set(data.items.filter((item) => field.domain.value === "" || item.d === Number(field.domain.value)).map((item) => item.s));
      field.speaker.replaceChildren(new Option("all", ""), ...[...names].sort().map((name) => new Option(name, `=${name}`)));
      field.speaker.value = names.has(kept.slice(1)) ? kept : "";
    };
    const matches = (item) => {
      const words = field.text.value.trim().toLowerCase();
      return (field.domain.value === "" || item.d === Number(field.domain.value)) &&
        (field.speaker.value === "" || `=${item.s}` === field.speaker.value) &&
        (words === "" || item.r.toLowerCase().includes(words) || item.h.some((h) => h && h[0].toLowerCase().includes(words))) &&
        errorsOf(item).length > 0;
    };
    const entry = (item) => {
      const made = element("li"), words = element("dl");
      made.append(element("p", `${data.domains[item.d]} · ${item.s} · ${item.i}`, "about"));
      words.append(element("dt", "reference"), element("dd", item.r || "(empty)"));
      item.h.forEach((h, index) => {
        if (!h || (field.method.value !== "" && index !== Number(field.method.value))) return;
        const name = element("dt", data.methods[index].label), text = element("dd");
        name.dataset.m = text.dataset.m = data.methods[index].id;
        text.append(aligned(item.r, h[0], h[1]), element("span", h[2] === 1 ? "1 error" : `${h[2]} errors`, "errors"));
        words.append(name, text);
      });
      made.append(words);
      return made;
    };
    const show = () => {
      const found = data.items.filter(matches).sort(orders[field.order.value]);
      list.replaceChildren(...found.slice(0, shown).map(entry));
      count.textContent = `${Math.min(shown, found.length)} of ${found.length} matching utterances`;
      more.hidden = found.length <= shown;
    };
    form.addEventListener("input", () => { shown = STEP; listSpeakers(); show(); });
    more.addEventListener("click", () => { shown += STEP; show(); });
    listSpeakers();
    show();
  };
  all("form[data-examples]").forEach(setUp);

  // Commands.
  for (const button of all(".copy")) {
    if (!navigator.clipboard) { button.hidden = true; continue; }
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent);
        button.textContent = "Copied";
      } catch { button.textContent = "Select and copy by hand"; }
    });
  }

  // Paper shows what is folded away on the screen.
  let opened = [];
  addEventListener("beforeprint", () => { opened = all("details:not([open])"); for (const part of opened) part.open = true; });
  addEventListener("afterprint", () => { for (const part of opened) part.open = false; });
})();
