// What a visitor takes away: the curl line, the image with its boxes, the JSON.

import { hue } from "./stage.js";

/** The command that asks the service for what is shown. */
export function curlLine(path, fileName, withKey) {
  const url = new URL(path, document.baseURI);
  const key = withKey ? `-H "Authorization: Bearer $CLQ_API_KEY" ` : "";
  return `curl ${key}-F ${quoted(`image=@${formName(fileName)}`)} ${quoted(url.href)}`;
}

/** A file name as curl's -F takes it: commas and semicolons would end it. */
const formName = (name) =>
  /[,;"\\]/.test(name) ? `"${name.replace(/["\\]/g, (mark) => `\\${mark}`)}"` : name;

/** One word of a POSIX shell. */
const quoted = (word) =>
  /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;

/** Saves the image as PNG in its own size, with the boxes drawn.  Raises Error if it is too large. */
export async function saveImage(picture, size, shown, labelled, name) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [size.width, size.height];
  const pen = canvas.getContext("2d"), unit = Math.max(1, Math.max(size.width, size.height) / 900);
  pen.drawImage(picture, 0, 0, size.width, size.height);
  pen.lineWidth = 2 * unit;
  pen.font = `600 ${12 * unit}px system-ui, sans-serif`;
  pen.textBaseline = "middle";
  for (const found of [...shown].reverse()) draw(pen, found, unit, labelled, size.width);
  const blob = await new Promise((done) => canvas.toBlob(done));
  if (!blob) throw new Error("it is too large for a canvas of this browser");
  save(blob, `${stem(name)}.boxes.png`);
}

function draw(pen, found, unit, labelled, limit) {
  const [x1, y1, x2, y2] = found.box;
  pen.strokeStyle = pen.fillStyle = `oklch(58% 0.2 ${hue(found.class_id)})`;
  pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
  if (!labelled) return;
  const text = `${found.label} ${found.score.toFixed(2)}`, height = 17 * unit;
  const width = pen.measureText(text).width + 8 * unit;
  const left = Math.max(0, Math.min(x1 - unit, limit - width)), top = y1 >= height ? y1 - height : y1;
  pen.fillRect(left, top, width, height);
  pen.fillStyle = "#fff";
  pen.fillText(text, left + 4 * unit, top + height / 2);
}

/** Saves the answer of the service with the detections that are shown. */
export function saveJson(answer, shown, name) {
  const text = JSON.stringify({ ...answer, detections: shown }, null, 1);
  save(new Blob([text], { type: "application/json" }), `${stem(name)}.json`);
}

const stem = (name) => name.replace(/\.[^.]*$/, "") || "image";

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the download has begun by then
}

/** Copies to the clipboard; the old way where the page is not on https or localhost. */
export async function copy(node) {
  if (navigator.clipboard) return navigator.clipboard.writeText(node.textContent);
  const selection = getSelection();
  selection.selectAllChildren(node);
  if (!document.execCommand("copy")) throw new Error("this browser does not allow it");
  selection.removeAllRanges();
}
