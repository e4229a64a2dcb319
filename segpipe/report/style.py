"""How the page looks, in light and in dark, and the few lines that sort its tables."""

STYLE = """
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .8rem 0; }
summary { cursor: pointer; margin: .5rem 0; }
.big { font-size: 1.2rem; margin: .3rem 0; }

.wide { overflow-x: auto; margin: .6rem 0; }
th, td { padding-right: 1rem; }
thead th { vertical-align: bottom; }
.numbers th, .numbers td { white-space: nowrap; }
.numbers thead th:not(:first-child) { text-align: right; }
.sortable thead th { cursor: pointer; }
.sortable thead th:hover { text-decoration: underline; }
small { opacity: .75; white-space: nowrap; }

.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: .6rem; }
.chart { width: 100%; height: auto; font-size: 11px; overflow: visible; }
.chart text { fill: currentColor; }
.chart .name { font-weight: 600; }
.chart polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.chart .thin { stroke-width: .9; opacity: .7; }
.chart .dashed { stroke-dasharray: 5 3; }
.chart .grid { stroke: #8885; stroke-width: .7; }
.chart .diagonal { stroke: currentColor; stroke-width: .8; opacity: .6; stroke-dasharray: 2 3; }

.keys { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .4rem 0; }
.keys i { display: inline-block; width: 1.4em; height: 3px; margin-right: .4em; vertical-align: middle; }
.sample { width: 30px; height: 8px; --class: currentColor; }

.planes { display: flex; flex-wrap: wrap; gap: .8rem; align-items: flex-end; }
figure { margin: 0; }
figcaption { font-size: .85em; opacity: .8; }
.case { margin: 1.2rem 0; }
.case svg { display: block; height: 300px; width: auto; max-width: 100%; background: #000; }
.case path { filter: drop-shadow(0 0 1px #000); }
.prediction, .reference { fill: none; stroke: var(--class); stroke-width: 1.8; vector-effect: non-scaling-stroke; }
.reference { stroke-dasharray: 3 3; stroke: color-mix(in srgb, var(--class), #fff 60%); }
.case .prediction { fill: var(--class); fill-opacity: var(--fill); }
body:has(#show-prediction:not(:checked)) .case .prediction { display: none; }
body:has(#show-reference:not(:checked)) .case .reference { display: none; }

@media print { nav { display: none; } .case, figure { break-inside: avoid; } }
"""

SORT = """<script>
for (const head of document.querySelectorAll(".sortable thead th")) head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex, up = head.dataset.up !== "1";
  for (const other of head.parentNode.children) delete other.dataset.up;
  head.dataset.up = up ? "1" : "0";
  const key = row => {
    const cell = row.cells[column];
    if (!cell.classList.contains("n")) return cell.textContent;
    return "v" in cell.dataset ? Number(cell.dataset.v) : null;
  };
  const compare = (a, b) => typeof a === "string" ? a.localeCompare(b, undefined, {numeric: true}) : a - b;
  body.append(...[...body.rows].sort((a, b) => {
    const x = key(a), y = key(b);
    return x === null || y === null ? (x === null) - (y === null) : (up ? 1 : -1) * compare(x, y);
  }));
});
</script>"""
