// What can be seen: clipping along the tree, and what lies on top.

const isClippedAway = (style) => style.position === "absolute" && /rect\([01](px)?[ ,]/.test(style.clip);

// Whether nothing of an element and its children is drawn.
const isNotDrawn = (element, style, opacity) => opacity < 0.15 || isClippedAway(style) ||
  (style.display !== "contents" && !element.checkVisibility()) ||
  /inset\((50|100)%/.test(style.clipPath);

// An element that only screen readers find, cut to a dot: what is drawn for it stands beside it.
const isForReaders = (style, rect) => (isClippedAway(style) || /inset\((50|100)%/.test(style.clipPath)) &&
  width(rect) <= 2 && height(rect) <= 2;

// Clip rectangles for an element and for its children. Boxes that are positioned absolutely are clipped
// by their containing block alone, fixed ones by the viewport alone: the two are kept apart.
function clips(element, style, rect, context) {
  let own = context.clip, absolute = context.absoluteClip;
  if (style.position === "fixed") own = absolute = viewport();
  else if (style.position === "absolute") own = absolute;
  let children = own;
  const hidesX = style.overflowX !== "visible", hidesY = style.overflowY !== "visible";
  const hasBox = !isInline(style) || (style.display !== "inline" && style.display !== "contents");
  if ((hidesX || hidesY) && hasBox && !/^(BODY|HTML)$/.test(tagOf(element))) {
    children = intersect(own, [
      hidesX ? rect[0] : -1e5, hidesY ? rect[1] : -1e5, hidesX ? rect[2] : 1e5, hidesY ? rect[3] : 1e5,
    ]);
    if (area(children) <= 1) children = [0, 0, 0, 0];
  }
  if (style.position !== "static" || style.transform !== "none") absolute = children;
  return { own, children, absolute };
}

// Elements at a point, topmost first, those in shadow trees too.
function stackAt(x, y) {
  const found = [], seen = new Set();
  const collect = (root) => {
    for (const element of root.elementsFromPoint(x, y)) {
      if (seen.has(element)) continue;
      seen.add(element);
      if (element.shadowRoot) collect(element.shadowRoot);
      found.push(element);
    }
  };
  collect(document);
  return found;
}

let opaqueElements = new Map();
function isOpaque(element) {
  if (!opaqueElements.has(element)) {
    const style = getComputedStyle(element);
    let opacity = 1;
    for (let e = element, n = 0; e && n < 8; e = parentOf(e), n++) opacity *= +getComputedStyle(e).opacity;
    const painted = colour(style.backgroundColor)[3] * opacity > 0.35 || (opacity > 0.5 &&
      ((/url|gradient/.test(style.backgroundImage) && style.backgroundSize !== "0px 0px") ||
        /^(IMG|VIDEO|CANVAS|IFRAME)$/i.test(element.tagName)));
    opaqueElements.set(element, style.visibility === "visible" && painted);
  }
  return opaqueElements.get(element);
}

// The element that covers `own` at a point, or null.
function covering(own, x, y) {
  const stack = stackAt(x, y);
  for (const element of stack) {
    if (isInside(element, own) || isInside(own, element)) return null;
    if (isOpaque(element)) return element;
  }
  return stack.at(-1) || document.body;
}

// Fraction of a rectangle of `own` that nothing covers, on a grid of points; and the rectangle with the
// sides cut off that lie under something (a sticky bar).
function uncovered(own, rect) {
  let [x0, y0, x1, y1] = rect, cut = false;
  const columns = width(rect) > 300 ? 5 : 3, rows = height(rect) > 150 ? 5 : 3;
  for (let pass = 0; ; pass++) {
    const grid = [...Array(rows).keys()].map((j) => [...Array(columns).keys()].map((i) => {
      const x = x0 + (x1 - x0) * (0.04 + (0.92 * i) / (columns - 1));
      const y = y0 + (y1 - y0) * (0.06 + (0.88 * j) / (rows - 1));
      return covering(own, Math.min(x, innerWidth - 0.5), Math.min(y, innerHeight - 0.5));
    }));
    const visible = grid.flat().filter((e) => !e).length / (rows * columns);
    if (visible === 0 || visible === 1 || pass === 1) return { visible, rect: [x0, y0, x1, y1], cut };
    const full = (cells) => cells.every((e) => e), column = (i) => grid.map((row) => row[i]);
    const before = [x0, y0, x1, y1];
    const edge = (cells, side, low, high) => {
      const at = full(cells) ? cells[0].getBoundingClientRect()[side] : NaN;
      return at > low && at < high ? at : null;
    };
    y0 = edge(grid[0], "bottom", y0, y1) ?? y0;
    y1 = edge(grid[rows - 1], "top", y0, y1) ?? y1;
    x0 = edge(column(0), "right", x0, x1) ?? x0;
    x1 = edge(column(columns - 1), "left", x0, x1) ?? x1;
    if (before.every((v, i) => v === [x0, y0, x1, y1][i])) return { visible, rect: before, cut };
    if (x1 - x0 < 4 || y1 - y0 < 4) return { visible: 0, rect: before, cut };
    cut = true;
  }
}
