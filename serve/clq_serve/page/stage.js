// The boxes over the image, the table beside it, and the one detection that is looked at.

const at = (id) => document.getElementById(id);

/** Hue of a class, degrees; neighbours in the list of classes are far apart. */
export const hue = (classId) => (255 + classId * 137.5) % 360;

/** Shows `shown`, by descending score, over the image and in the table. */
export function show(shown, image, alpha) {
  const byArea = [...shown].sort((a, b) => area(b) - area(a)); // a small box lies above a large one
  const depth = new Map(byArea.map((found, index) => [found, index]));
  at("boxes").replaceChildren(
    ...shown.map((found, index) => boxOf(found, index, depth.get(found), image, alpha)),
  );
  at("rows").replaceChildren(...shown.map(rowOf));
  at("tip").hidden = true;
}

const area = ({ box: [x1, y1, x2, y2] }) => (x2 - x1) * (y2 - y1);

function boxOf(found, index, depth, image, alpha) {
  const [x1, y1, x2, y2] = found.box;
  const box = document.createElement("button");
  box.type = "button";
  box.className = "box tinted";
  box.tabIndex = index === 0 ? 0 : -1; // one stop of the Tab key; arrows go on from there
  box.style.setProperty("--hue", hue(found.class_id));
  box.style.left = `${(100 * x1) / image.width}%`;
  box.style.top = `${(100 * y1) / image.height}%`;
  box.style.width = `${(100 * (x2 - x1)) / image.width}%`;
  box.style.height = `${(100 * (y2 - y1)) / image.height}%`;
  box.style.zIndex = depth;
  box.classList.toggle("low", y1 < 0.03 * image.height);
  box.classList.toggle("right", x1 > 0.88 * image.width);
  const name = document.createElement("span");
  name.textContent = `${found.label} ${found.score.toFixed(2)}`;
  name.ariaHidden = "true";
  box.append(name);
  box.setAttribute("aria-label", inWords(found, alpha));
  box.addEventListener("pointerenter", () => lookAt(index, found, alpha));
  box.addEventListener("pointerleave", lookAway);
  box.addEventListener("focus", () => {
    for (const other of at("boxes").children) other.tabIndex = other === box ? 0 : -1;
    lookAt(index, found, alpha);
  });
  box.addEventListener("blur", lookAway);
  return box;
}

function rowOf(found, index) {
  const row = document.createElement("tr");
  row.className = "tinted";
  row.style.setProperty("--hue", hue(found.class_id));
  const button = document.createElement("button"), dot = document.createElement("span");
  button.type = "button";
  dot.className = "dot";
  button.append(dot, found.label);
  button.addEventListener("click", () => boxAt(index).focus());
  row.insertCell().append(button);
  for (const value of [found.score, found.cls_score, found.quality]) {
    row.insertCell().textContent = value.toFixed(3);
  }
  row.insertCell().textContent = found.box.map((side) => side.toFixed(1)).join(", ");
  row.addEventListener("pointerenter", () => mark(index, true));
  row.addEventListener("pointerleave", () => mark(index, false));
  return row;
}

function inWords({ label, score, cls_score, quality, box: [x1, y1, x2, y2] }, alpha) {
  return (
    `${label} ${score.toFixed(2)}: score ${score.toFixed(3)} is class score ${cls_score.toFixed(3)} times ` +
    `quality ${quality.toFixed(3)} to the power ${alpha}; ${Math.round(x2 - x1)} by ` +
    `${Math.round(y2 - y1)} pixels at ${Math.round(x1)}, ${Math.round(y1)}`
  );
}

const boxAt = (index) => at("boxes").children[index];

function mark(index, on) {
  boxAt(index)?.classList.toggle("active", on);
  at("rows").children[index]?.classList.toggle("active", on);
}

function lookAway() {
  at("tip").hidden = true;
  for (const active of document.querySelectorAll("#boxes .active, #rows .active")) {
    active.classList.remove("active");
  }
}

function lookAt(index, found, alpha) {
  lookAway();
  mark(index, true);
  const tip = at("tip"), [x1, y1, x2, y2] = found.box;
  tip.replaceChildren(
    element("b", found.label), " ", element("b", found.score.toFixed(3)), document.createElement("br"),
    element("i", "= class "), found.cls_score.toFixed(3), element("i", " × quality "),
    found.quality.toFixed(3), element("sup", String(alpha)), document.createElement("br"),
    element("i", `${Math.round(x2 - x1)} × ${Math.round(y2 - y1)} px at ${Math.round(x1)}, ${Math.round(y1)}`),
  );
  tip.hidden = false;
  place(tip, boxAt(index), at("stage"));
}

/** Below the box if there is room in the stage, else above it, else inside at its top. */
function place(tip, box, stage) {
  const gap = 8, [left, top] = [box.offsetLeft, box.offsetTop];
  const below = top + box.offsetHeight + gap, above = top - tip.offsetHeight - gap;
  const fits = below + tip.offsetHeight <= stage.clientHeight;
  tip.style.top = `${fits ? below : above >= 0 ? above : Math.max(0, top + gap)}px`;
  tip.style.left = `${Math.max(0, Math.min(left, stage.clientWidth - tip.offsetWidth))}px`;
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

// Arrows, Home and End go from box to box by score; Escape leaves the boxes.
at("boxes").addEventListener("keydown", (event) => {
  const boxes = [...at("boxes").children], now = boxes.indexOf(event.target);
  const next = {
    ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1,
    Home: 0, End: boxes.length - 1,
  }[event.key];
  if (event.key === "Escape") event.target.blur();
  if (next === undefined || now < 0) return;
  event.preventDefault();
  boxes[(next + boxes.length) % boxes.length].focus();
});
