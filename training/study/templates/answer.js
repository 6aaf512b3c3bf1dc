// The viewer: one slice large, its windows, its heat map, and the keys.
const viewer = document.getElementById("viewer");
const find = (what) => viewer.querySelector(what);
let shown = null, shownWindow = 0, heatOn = false;

const sliceButtons = (button) => [...button.closest(".slices").children];
const choose = (button) => {
  document.querySelectorAll(".slice.chosen").forEach((other) => other.classList.remove("chosen"));
  button.classList.add("chosen");
  shown = button;
};

function bars(line) {
  const parts = [];
  for (const [name, of] of Object.entries(line.classes)) {
    const row = [document.createElement("span"), document.createElement("span"), document.createElement("b")];
    row[0].textContent = name;
    row[0].className = of.decision === 1 ? "positive" : "";
    row[1].className = "track";
    const fill = document.createElement("span");
    fill.className = "fill";
    fill.style.width = `${100 * of.probability}%`;
    fill.style.background = name === "any" ? "#e6eaee" : COLOURS[name];
    row[1].append(fill);
    if (of.threshold !== null) {
      const limit = document.createElement("span");
      limit.className = "limit";
      limit.style.left = `${Math.min(100, 100 * of.threshold)}%`;
      limit.title = `threshold ${of.threshold.toFixed(3)}`;
      row[1].append(limit);
    }
    row[2].textContent = of.probability.toFixed(3);
    parts.push(...row);
  }
  return parts;
}

function show() {
  const line = JSON.parse(shown.dataset.line), count = sliceButtons(shown).length;
  const pictures = shown.querySelectorAll("img:not(.heat)"), heat = shown.querySelector("img.heat");
  find(".picture").src = pictures[shownWindow].src;
  find(".picture").alt = `slice ${line.slice}, ${pictures[shownWindow].alt}`;
  find(".stage .heat").hidden = !(heatOn && heat);
  if (heat) find(".stage .heat").src = heat.src;
  find("h2").textContent = `Study ${line.study}, series ${line.series}: slice ${line.slice} of ${count}`
    + (line.frame ? `, frame ${line.frame} of its file` : "");
  const place = line.z_mm === null ? "" : `z ${line.z_mm.toFixed(1)} mm, `;
  const of = heatOn && heat ? ` Heat map: ${shown.dataset.heatOf}.` : "";
  find(".side p").textContent = `${place}${pictures[shownWindow].alt}.${of}` + (line.warning ? ` ${line.warning}.` : "");
  find(".bars").replaceChildren(...bars(line));
  viewer.querySelectorAll("[data-window]").forEach((button) =>
    button.setAttribute("aria-pressed", Number(button.dataset.window) === shownWindow));
  find("[data-do=heat]")?.setAttribute("aria-pressed", heatOn);
}

function open(button) {
  choose(button);
  if (!viewer.open) viewer.showModal();
  viewer.focus();
  show();
}

function close() {
  viewer.close();
  shown?.focus();
}

function go(to) {
  const all = sliceButtons(shown), at = Math.max(0, Math.min(all.length - 1, to(all.indexOf(shown), all.length)));
  choose(all[at]);
  if (viewer.open) show();
  else all[at].focus();
  all[at].scrollIntoView({block: "nearest", inline: "nearest"});
}

const setWindow = (number) => {
  if (number < viewer.querySelectorAll("[data-window]").length) shownWindow = number;
  show();
};
const toggleHeat = () => { heatOn = !heatOn && find("[data-do=heat]") !== null; show(); };
const on = (at) => at + 1, back = (at) => at - 1;
const moves = {
  ArrowRight: on, ArrowUp: on, PageUp: (at) => at + 5, ArrowLeft: back, ArrowDown: back, PageDown: (at) => at - 5,
  Home: () => 0, End: (at, count) => count - 1,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const inStrip = document.activeElement?.classList.contains("slice");
  if (!viewer.open && !inStrip) return;
  if (!viewer.open && ["ArrowUp", "ArrowDown", "PageUp", "PageDown"].includes(event.key)) return;
  if (!viewer.open) choose(document.activeElement);
  const key = event.key.toLowerCase();
  if (moves[event.key]) go(moves[event.key]);
  else if (!viewer.open) return;
  else if (key === "h") toggleHeat();
  else if (key === "w") setWindow((shownWindow + 1) % viewer.querySelectorAll("[data-window]").length);
  else if (/^[1-9]$/.test(key)) setWindow(Number(key) - 1);
  else if (key === "escape") close();
  else return;
  event.preventDefault();
});
document.querySelectorAll(".slice").forEach((button) => button.addEventListener("click", () => open(button)));
viewer.addEventListener("wheel", (event) => { event.preventDefault(); go(event.deltaY < 0 ? on : back); }, {passive: false});
viewer.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.window) setWindow(Number(button.dataset.window));
  const what = {on: () => go(on), back: () => go(back), heat: toggleHeat, close}[button.dataset.do];
  if (what) what();
});
