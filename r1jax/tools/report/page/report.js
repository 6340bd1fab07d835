"use strict";
// The table of completions. Their text is untrusted: it enters the document
// only through textContent.
(() => {
  const PAGE = 20;
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("data").textContent);
  const at = Object.fromEntries(data.columns.map((name, i) => [name, i]));
  const many = data.runs.length > 1;
  const shown = data.columns.filter(
    (name) => !["answer", "finish"].includes(name) && (many || name !== "run"));
  const texts = new Set(["run", "task", "prompt", "completion"]);
  const widths = { run: "9%", step: "60px", task: "10%", prompt: "22%" };
  const steps = [...new Set(data.rows.map((row) => row[at.step]))];
  steps.sort((a, b) => a - b);
  const state = { page: 0, sort: "step", descending: false, open: new Set() };

  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function value(row, name) {
    if (name === "run") return data.runs[row[at.run]];
    if (name === "prompt") return data.prompts[row[at.prompt]];
    return row[at[name]];
  }

  function written(row, name) {
    const it = value(row, name);
    if (it === null || it === undefined) return "–";
    if (texts.has(name)) return it;
    if (name === "step" || name === "length") return String(it);
    if (typeof it !== "number") return String(it);
    return it.toFixed(2).replace("-", "\u2212");
  }

  // What every prompt shares, the template, says nothing in a table.
  function shared(texts) {
    let size = texts.length > 1 ? texts[0].length : 0;
    for (const text of texts) {
      let i = 0;
      while (i < size && text[i] === texts[0][i]) i += 1;
      size = i;
    }
    return size;
  }
  const start = data.prompts.length
    ? data.prompts[0].slice(0, shared(data.prompts)).search(/\S*$/) : 0;
  const backward = data.prompts.map((it) => [...it].reverse().join(""));
  const end = shared(backward);
  function distinct(prompt) {
    const middle = prompt.slice(start, Math.max(start, prompt.length - end));
    return middle.trim() || prompt;
  }

  // Spans of a completion: inside <think>, inside <answer>, or neither.
  function coloured(text) {
    const pre = element("pre");
    let inside = "";
    for (const piece of text.split(/(<\/?(?:think|answer)>)/)) {
      const tag = /^<(\/?)(think|answer)>$/.exec(piece);
      if (tag && !tag[1]) inside = tag[2];
      if (piece) {
        const own = tag ? tag[2] + " tag" : inside;
        pre.append(element("span", own, piece));
      }
      if (tag && tag[1]) inside = "";
    }
    return pre;
  }

  function whole(row, id) {
    const tr = element("tr", "whole");
    const td = element("td");
    tr.id = id;
    td.colSpan = shown.length + 1;
    td.append(element("h3", "", "Prompt"),
              element("pre", "", value(row, "prompt")),
              element("h3", "", "Completion"),
              coloured(value(row, "completion")),
              element("h3", "", "Reference answer"),
              element("pre", "", value(row, "answer")));
    const ended = value(row, "finish");
    if (ended) {
      const how = ended === "length" ? "Cut at the length limit" : "Ended";
      td.append(element("h3", "", `${how} after ${row[at.length]} tokens`));
    }
    tr.append(td);
    return tr;
  }

  function matching() {
    const step = Number(find("step").value);
    const task = find("task").value;
    const run = many ? find("run").value : "";
    const query = find("search").value.toLowerCase();
    const has = (row, name) => value(row, name).toLowerCase().includes(query);
    const rows = data.rows.filter((row) =>
      (!step || row[at.step] === steps[step - 1]) &&
      (!task || row[at.task] === task.slice(1)) &&
      (!run || row[at.run] === Number(run)) &&
      (!query || has(row, "prompt") || has(row, "completion") ||
       has(row, "answer")));
    const sign = state.descending ? -1 : 1;
    return rows.sort((a, b) => {
      const x = value(a, state.sort), y = value(b, state.sort);
      if (x === y) return 0;
      if (x === null) return 1;  // What is missing comes last either way.
      if (y === null) return -1;
      return x < y ? -sign : sign;
    });
  }

  function draw() {
    const step = Number(find("step").value);
    find("step-shown").textContent = step ? steps[step - 1] : "all";
    find("step").setAttribute(
      "aria-valuetext", step ? `step ${steps[step - 1]}` : "all steps");
    const rows = matching();
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const first = state.page * PAGE;
    const body = find("table").tBodies[0];
    body.replaceChildren();
    rows.slice(first, first + PAGE).forEach((row, i) => {
      const open = state.open.has(row);
      const tr = element("tr", open ? "row open" : "row");
      const button = element("button", "expand", open ? "▾" : "▸");
      button.type = "button";
      button.setAttribute("aria-expanded", String(open));
      button.setAttribute("aria-controls", `whole-${i}`);
      button.setAttribute("aria-label", "Whole text");
      const head = element("td");
      head.append(button);
      tr.append(head);
      for (const name of shown) {
        const text = name === "prompt" ? distinct(written(row, name))
          : written(row, name);
        const cut = text.length > 400 ? text.slice(0, 400) + "…" : text;
        tr.append(element("td", texts.has(name) ? "" : "number", cut));
      }
      tr.addEventListener("click", () => {
        if (!state.open.delete(row)) state.open.add(row);
        draw();
        body.querySelectorAll(".expand")[i].focus({ preventScroll: true });
      });
      body.append(tr);
      if (open) body.append(whole(row, `whole-${i}`));
    });
    for (const th of find("table").tHead.rows[0].cells) {
      if (th.dataset.name === state.sort) {
        th.setAttribute(
          "aria-sort", state.descending ? "descending" : "ascending");
      } else {
        th.removeAttribute("aria-sort");
      }
    }
    const last = Math.min(first + PAGE, rows.length);
    find("shown").textContent = rows.length
      ? `${first + 1}–${last} of ${rows.length.toLocaleString("en")}`
      : "No completion matches.";
    find("previous").disabled = state.page === 0;
    find("next").disabled = state.page >= pages - 1;
  }

  function options(id, pairs) {
    for (const [key, text] of pairs) {
      const option = element("option", "", text);
      option.value = key;
      find(id).append(option);
    }
  }

  const head = find("table").tHead.rows[0];
  const corner = element("th");
  corner.style.width = "22px";
  corner.append(element("span", "unseen", "whole text"));
  head.append(corner);
  for (const name of shown) {
    const th = element("th", texts.has(name) ? "" : "number");
    th.scope = "col";
    th.dataset.name = name;
    const narrow = texts.has(name) ? "" : `${8 * name.length + 20}px`;
    th.style.width = widths[name] || narrow;
    const button = element("button", "", name);
    button.type = "button";
    button.addEventListener("click", () => {
      state.descending = state.sort === name && !state.descending;
      state.sort = name;
      draw();
    });
    th.append(button);
    head.append(th);
  }
  const names = [...new Set(data.rows.map((row) => row[at.task]))].sort();
  options("task", names.map((name) => ["=" + name, name]));
  if (many) options("run", data.runs.map((name, i) => [String(i), name]));
  find("step").max = String(steps.length);
  for (const id of ["step", "task", "search", ...(many ? ["run"] : [])]) {
    find(id).addEventListener("input", () => { state.page = 0; draw(); });
  }
  find("filters").addEventListener("submit", (event) => event.preventDefault());
  find("previous").addEventListener("click", () => { state.page -= 1; draw(); });
  find("next").addEventListener("click", () => { state.page += 1; draw(); });
  for (const id of ["filters", "table", "pager"]) find(id).hidden = false;
  draw();
})();
