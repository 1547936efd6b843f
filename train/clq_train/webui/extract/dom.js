// Geometry, colour and tree helpers. No rules about classes are here.
// A rectangle is [x0, y0, x1, y1] in CSS px of the viewport.

const EVERYWHERE = [-1e5, -1e5, 1e5, 1e5];
const PRIVATE_USE = /[\uE000-\uF8FF]|[\uDB80-\uDBFF]/;
const NOT_TEXT = /^(SCRIPT|STYLE|NOSCRIPT|TEMPLATE|SELECT|TEXTAREA|OPTION)$/i;

const viewport = () => {
  const width = document.documentElement.clientWidth || innerWidth;
  return [0, 0, Math.min(width, innerWidth), innerHeight];
};
const rectOf = (r) => [r.left, r.top, r.right, r.bottom];
const boundsOf = (element) => rectOf(element.getBoundingClientRect());
const width = (r) => r[2] - r[0];
const height = (r) => r[3] - r[1];
const area = (r) => Math.max(0, width(r)) * Math.max(0, height(r));
const intersect = (a, b) => [
  Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3]),
];
const union = (rects) => rects.reduce((a, b) => [
  Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[2], b[2]), Math.max(a[3], b[3]),
]);
// The rectangle at least `least` px high, around the same middle.
const atLeastHigh = (r, least) => {
  const middle = (r[1] + r[3]) / 2, half = Math.max(least, height(r)) / 2;
  return [r[0], middle - half, r[2], middle + half];
};

const px = (text) => parseFloat(text) || 0;
const classes = (element) => (element.getAttribute && element.getAttribute("class")) || "";
const tagOf = (element) => element.tagName.toUpperCase();
const parentOf = (element) => element.assignedSlot ||
  (element.parentNode instanceof ShadowRoot ? element.parentNode.host : element.parentElement);
const isInside = (element, ancestor) => {
  for (let e = element; e; e = parentOf(e)) if (e === ancestor) return true;
  return false;
};
const isInline = (style) => /^inline|^contents$|^ruby/.test(style.display);

// Some web components answer children and childNodes with what they were given, not with what they hold.
const getter = (prototype, name) => {
  const { get } = Object.getOwnPropertyDescriptor(prototype, name);
  return (node) => [...get.call(node)];
};
const realChildren = getter(Element.prototype, "children");
const realNodes = getter(Node.prototype, "childNodes");

// What is rendered below an element: its shadow tree, or what a slot was given, or its children.
const childElements = (element) => {
  if (element.shadowRoot) return [...element.shadowRoot.children];
  const assigned = element.tagName === "SLOT" ? element.assignedElements() : [];
  return assigned.length ? assigned : realChildren(element);
};
const childNodes = (element) => {
  if (element.shadowRoot) return [];
  const assigned = element.tagName === "SLOT" ? element.assignedNodes() : [];
  return assigned.length ? assigned : realNodes(element);
};

// ---- colour: [r, g, b, alpha], 0-255 and 0-1

const colours = new Map();
const brush = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
  .getContext("2d", { willReadFrequently: true });
const colour = (text) => {
  const plain = /^rgba?\(([\d.]+), ([\d.]+), ([\d.]+)(?:, ([\d.]+))?\)$/.exec(text);
  if (plain) return [+plain[1], +plain[2], +plain[3], plain[4] === undefined ? 1 : +plain[4]];
  if (!colours.has(text)) { // oklch(), color-mix() and the like: painted and read back
    brush.clearRect(0, 0, 1, 1);
    brush.fillStyle = "#0000";
    brush.fillStyle = text;
    brush.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = brush.getImageData(0, 0, 1, 1).data;
    colours.set(text, [r, g, b, a / 255]);
  }
  return colours.get(text);
};
const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
const contrast = (a, b) => Math.max(...[0, 1, 2].map((i) => Math.abs(a[i] - b[i])));
const gradientColours = (style) =>
  (style.backgroundImage.match(/(?:rgba?|oklch|oklab|color)\([^)]*\)/g) || []).map(colour);

// The box that can be seen of an element's own: a background, a border of 3 sides or a shadow that
// differs from the colour `behind` it. behind.picture: a picture is there, so any paint counts.
function ownBox(style, behind) {
  const fill = colour(style.backgroundColor);
  const picture = Boolean(behind.picture);
  const differs = (c, alpha, levels) =>
    picture ? c[3] > 2 * alpha : c[3] > alpha && contrast(over(c, behind), behind) > levels;
  const box = { filled: differs(fill, 0.03, 7), sides: 0, shadow: false };
  const isDrawing = /px|\b0%|calc/.test(style.backgroundSize); // an underline made of a gradient
  if (/gradient/.test(style.backgroundImage) && !isDrawing)
    box.filled ||= picture || gradientColours(style).some((c) => differs(c, 0.06, 7));
  for (const side of ["Top", "Right", "Bottom", "Left"]) {
    const line = style[`border${side}Style`];
    if (px(style[`border${side}Width`]) < 0.6 || line === "none" || line === "hidden") continue;
    if (differs(colour(style[`border${side}Color`]), 0.08, 9)) box.sides++;
  }
  if (style.boxShadow !== "none" && (!picture || fill[3] > 0.1))
    for (const part of style.boxShadow.split(/,(?![^(]*\))/)) {
      const paint = /\w+\([^)]*\)/.exec(part);
      const lengths = part.replace(/\w+\([^)]*\)/, "").match(/-?[\d.]+px/g) || [];
      if (paint && colour(paint[0])[3] > 0.04 && lengths.some((v) => px(v) !== 0)) box.shadow = true;
    }
  box.any = box.filled || box.sides >= 3 || box.shadow;
  box.colour = over(fill, behind);
  return box;
}

// The colour that the children of an element have behind them.
function backgroundBelow(element, style, box, behind, rect) {
  let below = behind;
  if (box.filled) {
    const gradient = /gradient/.test(style.backgroundImage) ? gradientColours(style)[0] : null;
    below = gradient ? over(gradient, behind) : box.colour;
    if (behind.picture && colour(style.backgroundColor)[3] < 0.9) below.picture = true;
  }
  if (/url\(/.test(style.backgroundImage) && width(rect) > 100) {
    below = below.slice(0, 3);
    below.picture = true;
  }
  return below;
}

// ---- text

function textNodes(node, found = []) {
  if (node.nodeType === 3) {
    if (node.nodeValue.trim()) found.push(node);
    return found;
  }
  if ((node.nodeType !== 1 && node.nodeType !== 11) || NOT_TEXT.test(node.tagName || "")) return found;
  const assigned = node.tagName === "SLOT" ? node.assignedNodes() : [];
  const below = assigned.length ? assigned : realNodes(node.shadowRoot || node);
  for (const child of below) textNodes(child, found);
  return found;
}

// Rectangles of the text lines below a node; of the text nodes alone, because a range over elements
// answers with the boxes of its block children as well.
function textRects(node) {
  const found = [];
  for (const text of textNodes(node)) {
    const parent = text.parentElement;
    const style = parent && getComputedStyle(parent);
    if (style) {
      if (style.visibility !== "visible" || +style.opacity < 0.15 || px(style.fontSize) < 4) continue;
      if (colour(style.color)[3] < 0.1 && style.backgroundClip !== "text") continue;
      if (isClippedAway(style) || PRIVATE_USE.test(text.nodeValue.trim())) continue;
      if (/material|icon|symbol/i.test(style.fontFamily.split(",")[0])) continue; // ligature icons
    }
    const range = document.createRange();
    range.selectNodeContents(text);
    for (const r of range.getClientRects())
      if (r.width >= 1 && r.height >= 3) found.push(rectOf(r));
  }
  return found;
}

const squeeze = (text) => text.replace(/\s+/g, " ").trim();
const textOf = (element) => {
  const slotted = element.shadowRoot || element.tagName === "SLOT" ||
    (element.getRootNode() instanceof ShadowRoot && element.querySelector("slot"));
  return squeeze(slotted ? textNodes(element).map((n) => n.nodeValue).join(" ")
    : element.textContent || "");
};

// Text rectangles joined to one for each line.
function lines(rects) {
  const rows = [];
  for (const r of rects) {
    const row = rows.find((o) => r[0] - o[2] < 20 && o[0] - r[2] < 20 &&
      Math.min(o[3], r[3]) - Math.max(o[1], r[1]) > 0.5 * Math.min(height(o), height(r)));
    if (row) row.splice(0, 4, ...union([row, r]));
    else rows.push(r.slice());
  }
  return rows;
}

// ---- pseudo-elements

// The style of a pseudo-element that is drawn, or null.
const pseudoStyle = (element, which) => {
  const style = getComputedStyle(element, which), content = style.content;
  const drawn = content && content !== "none" && content !== "normal" && style.display !== "none" &&
    style.visibility === "visible" && +style.opacity >= 0.2;
  return drawn ? style : null;
};
const pseudoText = (style) => style.content.replace(/" ?\/ ?".*$/, "").replace(/^["']|["']$/g, "");
const hasMask = (style) => (style.maskImage || style.webkitMaskImage || "").includes("url(");
