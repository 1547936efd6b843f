// The page /: an image goes to the service once, with all its candidates; everything after that
// (sliders, classes, the curl line, what is saved) is done here.

import { Problem, apiKey, detect, models, upright } from "./ask.js";
import { makeChips, showTimes, updateChips } from "./panel.js";
import { show } from "./stage.js";
import { fillStrip } from "./strip.js";
import { suppress } from "./suppress.js";
import { copy, curlLine, saveImage, saveJson } from "./take_away.js";

const at = (id) => document.getElementById(id);
const FLOOR = 0.01; // the least score that the slider offers, so that it never needs a new request
const MANY = 40; // with more boxes than this their labels hide the image

let loaded = []; // the models of the service
let file = null; // the image that is shown or on its way
let answer = null; // what the service said about it, not suppressed
let shown = []; // what is left after sliders and classes
let chosen = new Set(); // labels; none = all
let retry = start; // what "Try again" and a new key do
let asking = new AbortController();
const answers = new WeakMap(); // file -> what the service said about it, and by which path

// 1. The service: its models, and the answer to one image

async function start() {
  retry = start;
  try {
    await load();
    at("problem").hidden = at("key").hidden = true;
  } catch (problem) {
    complain(problem);
  }
}

/** Asks for the models, and chooses the one that is `answering`, if that is given. */
async function load(answering) {
  loaded = await models();
  at("model").replaceChildren(
    ...loaded.map((each, index) => new Option(`${each.name} / ${each.version}`, index)),
  );
  if (answering) at("model").value = Math.max(0, loaded.findIndex((each) => isSame(each, answering)));
  at("model").disabled = loaded.length < 2;
  at("model").title = describe(model());
  setSliders();
}

const isSame = (one, other) =>
  ["name", "version", "digest"].every((member) => one[member] === other[member]);

const isLoaded = (one) => loaded.some((each) => isSame(each, one));

const model = () => loaded[at("model").value] ?? loaded[0];

/** The route of the chosen model; the short one if there is no choice. */
function modelPath() {
  if (loaded.length < 2) return "v1/detect";
  return `v1/models/${encodeURIComponent(model().name)}/versions/${model().version}/detect`;
}

const describe = ({ digest, classes, licence }) =>
  `${digest.slice(0, 19)}, ${classes.length} classes, ${licence}`;

async function give(next) {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  retry = () => give(next);
  file = next;
  answer = null;
  shown = [];
  at("problem").hidden = true;
  say(`Asking about ${next.name} …`);
  preview(next);
  try {
    if (!loaded.length) await load();
    const path = `${modelPath()}?score=${FLOOR}&iou=1&max=1000`;
    const known = answers.get(next);
    if (known?.path !== path || !isLoaded(known.body.model)) {
      answers.set(next, { path, ...(await detect(path, next, signal)) });
    }
    const { body } = answers.get(next);
    if (!isLoaded(body.model)) await load(body.model); // another version came meanwhile
    if (signal.aborted) return;
    take(answers.get(next));
    if (mayLieOnItsSide(answer.image)) turn(next, signal);
  } catch (problem) {
    if (signal.aborted) return;
    clear();
    if (problem.code === "unknown_model") loaded = []; // it was unloaded: look again next time
    complain(problem);
  }
}

/** Browsers turn JPEG files by their EXIF orientation, other formats not all of them. */
const mayLieOnItsSide = (image) => image.orientation_applied && image.format !== "JPEG";

/** Puts the picture as the service sees it in the place of the file; without it the boxes stay. */
async function turn(next, signal) {
  try {
    showBlob(await upright(`${modelPath()}?format=image&score=1`, next, signal));
  } catch (problem) {
    if (!signal.aborted) complain(problem);
  }
}

function take({ body, roundTripMs }) {
  answer = body;
  chosen = new Set();
  at("key").hidden = true;
  sizeStage(body.image);
  at("stage").classList.remove("busy");
  makeChips(body.detections, choose);
  showTimes(body.timing_ms, roundTripMs);
  at("labels").checked = suppress(body.detections, score(), iou()).length <= MANY;
  at("result").hidden = false;
  at("result").classList.remove("waiting");
  update();
}

// 2. What is seen of it

const score = () => Number(at("score").value);
const iou = () => Number(at("iou").value);

function update() {
  at("score-shown").textContent = score().toFixed(2);
  at("iou-shown").textContent = iou().toFixed(2);
  if (!answer) return;
  const kept = suppress(answer.detections, score(), iou());
  const wanted = kept.filter(({ label }) => !chosen.size || chosen.has(label));
  shown = wanted.slice(0, model().thresholds.max);
  show(shown, answer.image, model().alpha);
  updateChips(kept, chosen);
  at("stage").classList.toggle("labelled", at("labels").checked);
  at("curl").textContent = curlLine(shownPath(), file.name, apiKey.get() !== null);
  const { width, height, format } = answer.image;
  const cut = wanted.length > shown.length ? `the first ${shown.length} of ` : "";
  const things = wanted.length === 1 ? "detection" : "detections";
  say(`${cut}${wanted.length} ${things} in ${file.name}, ${width} × ${height} ${format}`);
}

/** The request whose answer has exactly what is shown. */
function shownPath() {
  const classes = chosen.size ? `&classes=${[...chosen].map(encodeURIComponent).join(",")}` : "";
  return `${modelPath()}?score=${score()}&iou=${iou()}${classes}`;
}

function choose(label) {
  if (!chosen.delete(label)) chosen.add(label);
  update();
}

function setSliders() {
  at("score").value = model().thresholds.score;
  at("iou").value = model().thresholds.iou;
  update();
}

function showBlob(blob) {
  const picture = at("image");
  if (picture.src) URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(blob);
}

function preview(next) {
  const picture = at("image");
  showBlob(next);
  picture.alt = next.name;
  at("boxes").replaceChildren();
  at("rows").replaceChildren();
  at("tip").hidden = true;
  at("start").hidden = true;
  at("result").hidden = false;
  at("result").classList.add("waiting");
  at("stage").classList.add("busy");
  picture.decode().then(
    () => answer || sizeStage({ width: picture.naturalWidth, height: picture.naturalHeight }),
    () => {}, // the service will say what is wrong with it; its boxes need no picture
  );
}

function sizeStage({ width, height }) {
  at("stage").style.setProperty("--width", width);
  at("stage").style.setProperty("--height", height);
}

function clear() {
  at("stage").classList.remove("busy");
  at("result").hidden = true;
  at("start").hidden = false;
}

function say(text) {
  at("status").textContent = text;
}

function complain(problem) {
  if (!(problem instanceof Problem)) throw problem;
  const { status, code, title, detail, members } = problem;
  say("");
  at("problem-title").textContent = title;
  at("problem-detail").textContent = detail;
  at("problem-code").textContent = code ? `${status} ${code}` : "";
  at("problem-code").href = `docs#${code}`;
  const { request_id, retry_after } = members;
  at("problem-more").textContent =
    (retry_after ? `· try again in ${retry_after} s ` : "") + (request_id ? `· request ${request_id}` : "");
  at("again").hidden = !(status === 0 || status === 408 || status === 429 || status >= 500);
  at("problem").hidden = false;
  if (status !== 401 && status !== 403) return;
  at("key").hidden = false;
  at("key-value").focus();
}

// 3. Ways to give an image

function giveAll(files) {
  fillStrip(files, give);
  give(files[0]);
}

/** What was dropped or pasted; not what was chosen, where the service says what it takes. */
function giveImagesOf(carried) {
  const images = [...carried].filter(({ type }) => type.startsWith("image/") || !type);
  if (images.length) giveAll(images);
  else say("There is no image file in that; save the image first, then drop its file.");
}

at("file").addEventListener("change", ({ target }) => {
  if (target.files.length) giveAll([...target.files]);
  target.value = ""; // so that the same file can be chosen again
});
at("another").addEventListener("click", () => at("file").click());
at("example").addEventListener("click", async () => {
  const bytes = await (await fetch("page/example.webp")).blob();
  giveAll([new File([bytes], "example.webp", { type: "image/webp" })]);
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) giveImagesOf(event.clipboardData.files);
});
let depth = 0; // dragenter and dragleave come for every element on the way
const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => {
  if (carriesFiles(event)) at("veil").hidden = ++depth < 1;
});
addEventListener("dragleave", (event) => {
  if (carriesFiles(event)) at("veil").hidden = --depth < 1;
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  at("veil").hidden = true;
  giveImagesOf(event.dataTransfer.files);
});

// 4. Everything else that can be pressed

for (const id of ["score", "iou", "labels"]) at(id).addEventListener("input", update);
at("reset").addEventListener("click", setSliders);
at("model").addEventListener("change", () => {
  answer = null;
  at("model").title = describe(model());
  setSliders();
  if (file) give(file);
});
at("again").addEventListener("click", () => retry());
at("save-image").addEventListener("click", () =>
  saveImage(at("image"), answer.image, shown, at("labels").checked, file.name).catch((error) =>
    say(`The image could not be drawn: ${error.message}`),
  ),
);
at("save-json").addEventListener("click", () => saveJson(answer, shown, file.name));
at("copy").addEventListener("click", async () => {
  const done = await copy(at("curl")).then(() => "Copied", () => "Not allowed here");
  at("copy").textContent = done;
  setTimeout(() => (at("copy").textContent = "Copy"), 2000);
});
at("key-open").addEventListener("click", () => {
  at("key").hidden = !at("key").hidden;
  if (!at("key").hidden) at("key-value").focus();
});
at("key").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey.set(at("key-value").value.trim());
  at("key-value").value = "";
  at("key").hidden = at("problem").hidden = true;
  if (retry === start || answer === null) retry();
  else update();
});
at("key-forget").addEventListener("click", () => {
  apiKey.forget();
  at("key").hidden = true;
  update();
});

start();
