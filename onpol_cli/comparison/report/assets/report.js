// The report's behaviour: theme, sortable tables, problem browser. No network, no eval; every piece of
// model output reaches the page through textContent alone.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const ROW = 44;
  const MARK = { passed: "✓", failed: "✗", timeout: "t", no_answer: "∅", truncated: "…", error: "!" };

  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // ---- theme -----------------------------------------------------------------------------------
  const THEMES = ["auto", "light", "dark"];
  const store = {
    get: (key) => { try { return localStorage.getItem(key); } catch { return null; } },
    set: (key, value) => { try { localStorage.setItem(key, value); } catch { /* private window */ } },
  };
  const setTheme = (name) => {
    if (name === "auto") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.setAttribute("data-theme", name);
    $("theme-name").textContent = name;
    store.set("onpol-theme", name);
  };
  setTheme(THEMES.includes(store.get("onpol-theme")) ? store.get("onpol-theme") : "auto");
  $("theme").addEventListener("click", () => {
    setTheme(THEMES[(THEMES.indexOf($("theme-name").textContent) + 1) % THEMES.length]);
  });

  // ---- sortable tables ---------------------------------------------------------------------------
  const sortKey = (cell) => {
    const text = cell.textContent.trim().replace(/−/g, "-");
    const found = /^[<*]?\s*([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)([kMG])?(?![\w/])/.exec(text);
    if (!found) return text === "–" || text === "" ? null : text.toLowerCase();
    return parseFloat(found[1].replace(/,/g, "")) * ({ k: 1e3, M: 1e6, G: 1e9 }[found[2]] || 1);
  };
  const compare = (a, b) => {
    if (a === null || b === null) return a === b ? 0 : a === null ? 1 : -1; // empty cells last, both ways
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1;
  };
  const sortBy = (table, column, direction) => {
    const body = table.tBodies[0];
    const groups = []; // a row and the minor rows that detail it stay together
    for (const row of body.rows) {
      if (row.classList.contains("minor") && groups.length) groups[groups.length - 1].rows.push(row);
      else groups.push({ rows: [row], key: sortKey(row.cells[column]) });
    }
    const turned = direction === "descending" ? -1 : 1;
    groups.sort((a, b) => compare(a.key, b.key) * (a.key === null || b.key === null ? 1 : turned));
    for (const group of groups) body.append(...group.rows);
    for (const [i, head] of [...table.tHead.rows[0].cells].entries()) {
      if (i === column) head.setAttribute("aria-sort", direction); else head.removeAttribute("aria-sort");
    }
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
      head.querySelector("button").addEventListener("click", () => {
        sortBy(table, column, head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending");
      });
    }
  }

  // ---- diff ----------------------------------------------------------------------------------------
  // Longest common subsequence as a list of [kind, a index, b index]; kind 0 equal, -1 only in a, +1 only in b.
  const script = (a, b) => {
    let start = 0, endA = a.length, endB = b.length;
    while (start < endA && start < endB && a[start] === b[start]) start++;
    while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) { endA--; endB--; }
    const out = [];
    for (let i = 0; i < start; i++) out.push([0, i, i]);
    const n = endA - start, m = endB - start;
    if (n * m > 4e6) { // too large to align: everything replaced
      for (let i = start; i < endA; i++) out.push([-1, i, -1]);
      for (let j = start; j < endB; j++) out.push([1, -1, j]);
    } else {
      const width = m + 1, best = new Uint16Array((n + 1) * width);
      for (let i = n - 1; i >= 0; i--) for (let j = m - 1; j >= 0; j--) {
        best[i * width + j] = a[start + i] === b[start + j] ? best[(i + 1) * width + j + 1] + 1
          : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
      }
      let i = 0, j = 0;
      while (i < n || j < m) {
        if (i < n && j < m && a[start + i] === b[start + j]) { out.push([0, start + i, start + j]); i++; j++; }
        else if (i < n && (j === m || best[(i + 1) * width + j] >= best[i * width + j + 1])) out.push([-1, start + i++, -1]);
        else out.push([1, -1, start + j++]);
      }
    }
    for (let i = endA; i < a.length; i++) out.push([0, i, endB + i - endA]);
    return out;
  };
  const tokens = (line) => line.match(/\s+|\w+|[^\s\w]/g) || [];
  const lines = (text) => text.replace(/\r\n?/g, "\n").replace(/\n+$/, "").split("\n");

  const codeRow = (sign, parts) => {
    const row = make("div", sign === "+" ? "row add" : sign === "−" ? "row cut" : "row");
    row.dataset.sign = sign;
    for (const [kind, text] of parts) row.append(kind === 0 ? document.createTextNode(text) : make(kind > 0 ? "ins" : "del", "", text));
    return row;
  };
  // One changed line as its old and new form, with the changed tokens marked.
  const changedPair = (before, after) => {
    const a = tokens(before), b = tokens(after), steps = script(a, b), old = [], fresh = [];
    const word = (token) => /\S/.test(token);
    const same = steps.filter(([kind, i]) => kind === 0 && word(a[i])).length;
    if (2 * same < 0.4 * (a.filter(word).length + b.filter(word).length)) { // unlike lines: no marks inside
      return [codeRow("−", [[0, before]]), codeRow("+", [[0, after]])];
    }
    for (const [kind, i, j] of steps) {
      if (kind <= 0) old.push([kind, a[i]]);
      if (kind >= 0) fresh.push([kind, b[j]]);
    }
    return [codeRow("−", old), codeRow("+", fresh)];
  };
  const codeBlock = (text, base) => {
    const block = make("div", "code"), rows = make("div", "rows");
    block.append(rows);
    block.tabIndex = 0;
    block.setAttribute("role", "region");
    block.setAttribute("aria-label", "code");
    if (base === null) {
      for (const line of lines(text)) rows.append(codeRow(" ", [[0, line]]));
      return block;
    }
    const a = lines(base), b = lines(text);
    let cut = [], add = [];
    const flush = () => {
      const paired = Math.min(cut.length, add.length), old = [], fresh = [];
      for (let k = 0; k < paired; k++) { const [x, y] = changedPair(cut[k], add[k]); old.push(x); fresh.push(y); }
      for (const line of cut.slice(paired)) old.push(codeRow("−", [[0, line]]));
      for (const line of add.slice(paired)) fresh.push(codeRow("+", [[0, line]]));
      rows.append(...old, ...fresh);
      cut = []; add = [];
    };
    for (const [kind, i, j] of script(a, b)) {
      if (kind < 0) cut.push(a[i]);
      else if (kind > 0) add.push(b[j]);
      else { flush(); rows.append(codeRow(" ", [[0, b[j]]])); }
    }
    flush();
    return block;
  };
  // The program in an answer: as graded if the run says so, else its last fenced block, else all of it.
  const program = (answer) => {
    if (answer.code !== null) return answer.code;
    const blocks = [...answer.completion.matchAll(/```[^\n`]*\n([\s\S]*?)(?:```|$)/g)];
    return blocks.length ? blocks[blocks.length - 1][1] : answer.completion;
  };

  // ---- problems and filters -------------------------------------------------------------------------
  // The data block is JSON, deflated, in base 64; fetch() of a data: address would be a request.
  const unpack = async (text) => {
    const bytes = Uint8Array.from(atob(text.trim()), (char) => char.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(plain).text());
  };
  const browse = (data) => {
    const PASSED = data.outcomes.indexOf("passed"), textOf = (number) => (number === null ? null : data.texts[number]);
    const problems = data.problems.map((p) => ({ ...p, statement: textOf(p.statement), original: textOf(p.original), corrupted: textOf(p.corrupted) }));
    const models = data.models;
    const answerOf = (model, index) => {
      const raw = data.answers[model][index];
      return raw && { outcome: raw[0], reward: raw[1], excess: raw[2], cc: raw[3], completion: textOf(raw[4]), code: textOf(raw[5]), passed: raw[6], of: raw[7] };
    };
    const option = (value, text) => { const o = make("option", "", text); o.value = value; return o; };
    const fill = (id, entries) => $(id).replaceChildren(...entries.map(([value, text]) => option(value, text)));
    fill("f-bench", [["", "all"], ...data.benches.map((name, i) => [i, name])]);
    fill("f-family", [["", "all"], ...data.families.map((name, i) => [i, name])]);
    const STATES = [["", "any result"], ["passed", "passes"], ["not", "fails"], ["over", "over-edited"], ["minimal", "passes, minimal"],
      ...data.outcomes.filter((o) => o !== "passed" && o !== "failed").map((o) => [o, o.replace("_", " ")])];
    for (const side of ["a", "b"]) {
      fill(`f-${side}`, [["", "no condition"], ...models.map((name, i) => [i, name])]);
      fill(`f-${side}-state`, STATES);
    }
    const holds = (index, model, state, limit) => {
      const raw = data.answers[model][index];
      if (!raw) return false;
      if (state === "passed") return raw[0] === PASSED;
      if (state === "not") return raw[0] !== PASSED;
      if (state === "over") return raw[0] === PASSED && raw[2] !== null && raw[2] > limit;
      if (state === "minimal") return raw[0] === PASSED && raw[2] !== null && raw[2] <= 1e-9;
      return state === "" || data.outcomes[raw[0]] === state;
    };
    const mentions = (index, word) => {
      const p = problems[index];
      for (const text of [p.id, p.statement, p.original, p.corrupted]) if (text && text.toLowerCase().includes(word)) return true;
      return data.answers.some((column) => column[index] && textOf(column[index][4]).toLowerCase().includes(word));
    };
    let visible = [], chosen = 0;
    const shown = new Set(data.shown.slice(0, 12)); // the first seed of each label
    const inOrder = () => [...shown].sort((a, b) => a - b);
    const filter = () => {
      const word = $("f-text").value.trim().toLowerCase(), bench = $("f-bench").value, family = $("f-family").value;
      const limit = parseFloat($("f-over").value) || 0;
      const sides = ["a", "b"].filter((s) => $(`f-${s}`).value !== "").map((s) => [Number($(`f-${s}`).value), $(`f-${s}-state`).value]);
      visible = [];
      for (let i = 0; i < problems.length; i++) {
        if (bench !== "" && problems[i].bench !== Number(bench)) continue;
        if (family !== "" && !problems[i].families.includes(Number(family))) continue;
        if (!sides.every(([model, state]) => holds(i, model, state, limit))) continue;
        if (word && !mentions(i, word)) continue;
        visible.push(i);
      }
      $("count").textContent = `${visible.length.toLocaleString("en")} of ${problems.length.toLocaleString("en")} problems`;
      $("list-space").style.height = `${visible.length * ROW}px`;
      $("list").scrollTop = 0;
      choose(0);
    };
    const list = $("list"), space = $("list-space");
    const draw = () => {
      const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
      const last = Math.min(visible.length, first + Math.ceil((list.clientHeight || 600) / ROW) + 8);
      const rows = [];
      for (let i = first; i < last; i++) {
        const problem = problems[visible[i]], row = make("div", "item"), marks = make("span", "marks");
        row.id = `item-${i}`;
        row.setAttribute("role", "option");
        row.setAttribute("aria-selected", String(i === chosen));
        row.setAttribute("aria-setsize", String(visible.length));
        row.setAttribute("aria-posinset", String(i + 1));
        row.style.top = `${i * ROW}px`;
        row.dataset.at = String(i);
        for (const m of inOrder()) {
          const raw = data.answers[m][visible[i]], outcome = raw ? data.outcomes[raw[0]] : "none";
          const mark = make("span", `mark ${outcome}`, MARK[outcome] || "·");
          mark.title = `${models[m]}: ${outcome.replace("_", " ")}`;
          marks.append(mark);
        }
        row.append(make("span", "id", problem.id), marks);
        rows.push(row);
      }
      space.replaceChildren(...rows);
      list.setAttribute("aria-activedescendant", visible.length ? `item-${chosen}` : "");
    };
    const choose = (at) => {
      chosen = Math.max(0, Math.min(at, visible.length - 1));
      const top = chosen * ROW;
      if (top < list.scrollTop) list.scrollTop = top;
      else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
      draw();
      detail();
    };
    list.addEventListener("scroll", draw, { passive: true });
    list.addEventListener("click", (event) => {
      const row = event.target.closest(".item");
      if (row) choose(Number(row.dataset.at));
    });
    list.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
      const moves = { ArrowDown: chosen + 1, ArrowUp: chosen - 1, PageDown: chosen + page, PageUp: chosen - page, Home: 0, End: visible.length - 1 };
      if (event.key in moves) { event.preventDefault(); choose(moves[event.key]); }
      else if (event.key === "Enter") $("detail").focus();
    });

    // ---- one problem -----------------------------------------------------------------------------------
    for (const [i, name] of models.entries()) {
      const label = make("label"), box = make("input");
      box.type = "checkbox";
      box.checked = shown.has(i);
      box.addEventListener("change", () => { if (box.checked) shown.add(i); else shown.delete(i); legend(); draw(); detail(); });
      label.append(box, ` ${name}`);
      $("shown").append(label);
    }
    const fixed = (value, digits = 3) => (value === null ? "–" : value.toFixed(digits));
    const card = (title, badge, grades, body) => {
      const element = make("article", "card"), head = make("header");
      head.append(make("span", "name", title));
      if (badge) head.append(make("span", `badge ${badge}`, badge.replace("_", " ")));
      element.append(head);
      if (grades) element.append(make("div", "grades", grades));
      element.append(...body);
      return element;
    };
    const answerCard = (model, index, base) => {
      const answer = answerOf(model, index);
      if (!answer) return card(models[model], "", "", [make("p", "empty", "not answered")]);
      const grades = [`reward ${fixed(answer.reward)}`];
      if (answer.excess !== null) grades.push(`excess Lev. ${fixed(answer.excess)}`);
      if (answer.cc !== null) grades.push(`added CC ${Number.isInteger(answer.cc) ? answer.cc : fixed(answer.cc)}`);
      if (answer.of > 1) grades.push(`${answer.passed} of ${answer.of} samples pass; the first is shown`);
      const full = make("details"), summary = make("summary", "", "Full answer");
      full.append(summary, make("pre", "", answer.completion));
      const code = program(answer);
      const body = code.trim() ? codeBlock(code, base) : make("p", "empty", "no code in this answer");
      return card(models[model], data.outcomes[answer.outcome], grades.join(" · "), [body, full]);
    };
    function detail() {
      const index = visible[chosen], head = $("detail-head"), cards = $("cards");
      if (index === undefined) {
        head.replaceChildren(make("p", "empty", "No problem matches these filters."));
        cards.replaceChildren();
        return;
      }
      const problem = problems[index], title = make("h3", "", problem.id), tags = make("div");
      for (const text of [data.benches[problem.bench], ...problem.families.map((f) => data.families[f])]) tags.append(make("span", "badge tag", text));
      const statement = make("div", "statement", problem.statement || "(no statement in the run directory)");
      head.replaceChildren(title, tags, statement);
      const made = [];
      if (problem.corrupted) made.push(card("Corrupted (given)", "", "", [codeBlock(problem.corrupted, null)]));
      if (problem.original) made.push(card(problem.corrupted ? "Original, against corrupted" : "Reference", "", "", [codeBlock(problem.original, problem.corrupted || null)]));
      for (const model of inOrder()) made.push(answerCard(model, index, problem.corrupted || null));
      cards.replaceChildren(...made);
    }
    function legend() {
      $("legend").textContent = `Marks, in order: ${inOrder().map((i) => models[i]).join(", ") || "none"}. `
        + data.outcomes.map((o) => `${MARK[o] || "·"} ${o.replace("_", " ")}`).join(", ");
    }
    legend();

    let timer = 0;
    const soon = () => { clearTimeout(timer); timer = setTimeout(filter, 120); };
    $("f-text").addEventListener("input", soon);
    $("f-over").addEventListener("input", soon);
    for (const id of ["f-bench", "f-family", "f-a", "f-a-state", "f-b", "f-b-state"]) $(id).addEventListener("change", filter);
    $("filters").addEventListener("submit", (event) => { event.preventDefault(); filter(); });
    $("filters").addEventListener("reset", () => setTimeout(filter, 0));
    filter();
    document.documentElement.dataset.readyMs = String(Math.round(performance.now()));
    document.documentElement.dataset.ready = "true";
  };
  if (typeof DecompressionStream === "undefined") $("count").textContent = "This browser is too old to unpack the problems (2023 or newer is needed).";
  else unpack($("data").textContent).then(browse);
})();
