// The panel beside the image: how many of each class, and where the time of the request went.

import { hue } from "./stage.js";

const at = (id) => document.getElementById(id);
const SHADES = ["#8b95a5", "#3f8efc", "#f0a92e", "#7a5cf0", "#21b37c", "#e0559a", "#27b6c9"];
const STAGES = { decode: "decode and resize", queue: "wait for the model", infer: "model", post: "suppress" };

/** One button for each class that has candidates; `choose(label)` is called when one is pressed. */
export function makeChips(detections, choose) {
  const present = new Map(detections.map((found) => [found.class_id, found.label]));
  const chips = [...present].sort(([a], [b]) => a - b).map(([classId, label]) => {
    const chip = document.createElement("button"), count = document.createElement("span");
    chip.type = "button";
    chip.className = "chip tinted";
    chip.style.setProperty("--hue", hue(classId));
    chip.dataset.label = label;
    chip.append(label, " ", count);
    chip.addEventListener("click", () => choose(label));
    return chip;
  });
  at("classes").replaceChildren(...chips);
}

/** Writes how many of each class there are, and which are chosen, into the buttons. */
export function updateChips(kept, chosen) {
  const counts = new Map();
  for (const { label } of kept) counts.set(label, (counts.get(label) ?? 0) + 1);
  for (const chip of at("classes").children) {
    const count = counts.get(chip.dataset.label) ?? 0;
    chip.lastChild.textContent = count;
    chip.classList.toggle("none", count === 0);
    chip.ariaPressed = String(chosen.has(chip.dataset.label));
  }
}

/** A bar and a list of the stages of one request; what the service did not count is the way there. */
export function showTimes({ total, batch_size, ...stages }, roundTripMs) {
  const counted = Object.values(stages).reduce((sum, ms) => sum + ms, 0);
  const parts = Object.entries(stages).map(([name, ms]) => [STAGES[name] ?? name, ms]);
  parts.push(["upload, answer and the rest", Math.max(0, roundTripMs - counted)]);
  const bars = [], lines = [];
  parts.forEach(([name, ms], index) => {
    const bar = document.createElement("div");
    bar.style.setProperty("--share", ms);
    const term = document.createElement("dt"), value = document.createElement("dd");
    for (const shaded of [bar, term]) shaded.style.setProperty("--shade", SHADES[index % SHADES.length]);
    term.textContent = name;
    value.textContent = `${ms.toFixed(1)} ms`;
    bars.push(bar);
    lines.push(term, value);
  });
  at("times").replaceChildren(...bars);
  at("stages").replaceChildren(...lines);
  const shared = batch_size > 1 ? `, in a batch of ${batch_size}` : "";
  at("total").textContent = `${roundTripMs.toFixed(0)} ms${shared}`;
}
