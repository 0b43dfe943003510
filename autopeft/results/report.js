// What moves in the report: the colours, the charts, the card of a design, the table of all trials. No library but plotly.
(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const all = (selector, within) => Array.from((within || document).querySelectorAll(selector));

  // Light and dark: as the system has it, until the reader chooses; the choice is remembered.
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const themeButton = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  function applyTheme() {
    themeButton.textContent = isDark() ? "Light" : "Dark";
    drawCharts();
  }
  themeButton.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("autopeft-theme", root.dataset.theme); } catch (error) { /* not remembered */ }
    applyTheme();
  });
  system.addEventListener("change", applyTheme);

  // Charts. The marks' colours are those of the light page; the dark one has brighter forms of them.
  const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  let selected = null;
  function themed(layout) {
    const axis = { gridcolor: color("--grid"), linecolor: color("--line"), tickcolor: color("--line"), automargin: true };
    // A phone has room for every second tick.
    const few = window.innerWidth < 640 && (layout.xaxis.tickvals || []).length > 6;
    const sparse = few ? {
      tickvals: layout.xaxis.tickvals.filter((_, place) => place % 2 === 0),
      ticktext: layout.xaxis.ticktext.filter((_, place) => place % 2 === 0) } : {};
    return Object.assign({}, layout, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true,
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: color("--ink") },
      hoverlabel: Object.assign({}, layout.hoverlabel, {
        bgcolor: color("--panel"), bordercolor: color("--line"), font: { color: color("--ink"), size: 12 } }),
      xaxis: Object.assign({}, layout.xaxis, axis, sparse, { showgrid: false, showline: true }),
      yaxis: Object.assign({}, layout.yaxis, axis),
    });
  }
  function ring(traces) {
    for (const trace of traces) {
      const at = (trace.customdata || []).indexOf(selected);
      if (at >= 0) {
        return [{ x: [trace.x[at]], y: [trace.y[at]], mode: "markers", hoverinfo: "skip", showlegend: false,
          marker: { symbol: "circle-open", size: 19, color: color("--ink"), line: { width: 2 } } }];
      }
    }
    return [];
  }
  function drawChart(name) {
    const text = JSON.stringify(data.figures[name]).replaceAll("#0072b2", color("--front")).replaceAll("#d55e00", color("--mark"));
    const figure = JSON.parse(text);
    const traces = name === "front" ? figure.data.concat(ring(figure.data)) : figure.data;
    const options = { responsive: true, displaylogo: false, displayModeBar: false };
    return Plotly.react("chart-" + name, traces, themed(figure.layout), options);
  }
  function drawCharts() { Object.keys(data.figures).forEach(drawChart); }

  // The card: one of the recommended designs, or the trial that was clicked.
  const card = document.getElementById("card");
  const tabs = all("[role=tab]");
  const selectedTab = document.getElementById("tab-selected");
  function fill(number, meaning) {
    const values = data.cards[number];
    card.querySelector(".meaning").textContent = meaning || "";
    card.querySelector(".words").textContent = values.words;
    card.querySelector(".which").textContent = "trial " + values.number + (values.mark ? ", " + values.mark : "");
    card.querySelector("dl").replaceChildren(...values.facts.flatMap((fact) => [
      Object.assign(document.createElement("dt"), { textContent: fact.label }),
      Object.assign(document.createElement("dd"), { textContent: fact.value }),
      Object.assign(document.createElement("dd"), { textContent: fact.detail, className: "soft" }),
    ]));
    card.querySelector(".code").hidden = !values.code;
    card.querySelector("pre").textContent = values.code;
    card.querySelector(".no-code").hidden = !values.note;
    card.querySelector(".no-code").textContent = values.note;
    selected = Number(number);
    all("tr[data-trial]").forEach((row) => row.classList.toggle("selected", Number(row.dataset.trial) === selected));
    drawChart("front");
  }
  function choose(tab) {
    tabs.forEach((other) => {
      other.setAttribute("aria-selected", String(other === tab));
      other.tabIndex = other === tab ? 0 : -1;
    });
    card.setAttribute("aria-labelledby", tab.id);
    fill(tab.dataset.card, tab.dataset.meaning);
  }
  function show(number) {
    selectedTab.hidden = false;
    selectedTab.dataset.card = number;
    choose(selectedTab);
  }
  tabs.forEach((tab) => tab.addEventListener("click", () => choose(tab)));
  document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const open = tabs.filter((tab) => !tab.hidden);
    if (!step || !open.length) return;
    const next = open[(open.indexOf(document.activeElement) + step + open.length) % open.length];
    choose(next);
    next.focus();
  });
  all("[data-show]").forEach((button) => button.addEventListener("click", () => {
    show(button.dataset.show);
    document.querySelector(".hero").scrollIntoView();
    card.focus({ preventScroll: true });
  }));

  // Copying code.
  async function copyText(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch (error) {
      // Browsers that give no clipboard to a file still let a selection be copied.
      const area = Object.assign(document.createElement("textarea"), { value: text });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  }
  all(".copy").forEach((button) => button.addEventListener("click", async () => {
    await copyText(button.parentElement.querySelector("pre").textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }));

  // The table of all trials: filter and sort.
  const table = document.getElementById("all-trials");
  if (table) {
    const body = table.tBodies[0];
    const rows = Array.from(body.rows).map((row, place) => ({ row, place, text: row.textContent.toLowerCase(), kinds: row.dataset.kinds.split(" ") }));
    const find = document.getElementById("find");
    const outcome = document.getElementById("outcome");
    const onlyFront = document.getElementById("only-front");
    const kinds = all("input[name=kind]");
    const filter = () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      const wanted = kinds.filter((box) => box.checked).map((box) => box.value);
      let shown = 0;
      rows.forEach(({ row, text, kinds: own }) => {
        const fits = words.every((word) => text.includes(word)) && wanted.every((kind) => own.includes(kind))
          && (!outcome.value || row.dataset.outcome === outcome.value) && (!onlyFront.checked || "front" in row.dataset);
        row.hidden = !fits;
        shown += fits;
      });
      document.getElementById("shown").textContent = shown + " of " + rows.length;
    };
    const form = document.querySelector("form.filter");
    ["input", "change"].forEach((kind) => form.addEventListener(kind, filter));
    form.addEventListener("submit", (event) => event.preventDefault());
    filter(); // A reloaded page keeps what was typed.

    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const first = data.higher.includes(column) ? "descending" : "ascending";
      const order = before ? (before === "ascending" ? "descending" : "ascending") : first;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const numeric = head.classList.contains("n");
      const value = ({ row }) => (numeric ? row.cells[column].dataset.v : row.cells[column].textContent.trim().toLowerCase());
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "") || a.place - b.place; // what is missing comes last
        return sign * (numeric ? Number(x) - Number(y) : x.localeCompare(y)) || a.place - b.place;
      };
      body.append(...rows.slice().sort(compare).map(({ row }) => row));
    }));
  }

  const firstTab = tabs.find((tab) => !tab.hidden);
  if (firstTab) selected = Number(firstTab.dataset.card);
  applyTheme();
  if (firstTab) choose(firstTab);
  document.getElementById("chart-front").on("plotly_click", (event) => {
    const number = event.points[0].customdata;
    if (number !== undefined) show(String(number));
  });
})();
