// Walks the page once and collects findings. Two steps, because the boxes of pseudo-elements are known to
// the browser alone, not to the page: extract() marks them, the driver asks the browser for their boxes
// and gives these to pseudoBoxes().

const SKIPPED = /^(SCRIPT|STYLE|NOSCRIPT|TEMPLATE|HEAD|META|LINK|OPTION|BR|HR|TITLE|SOURCE|TRACK|AREA|MAP|WBR|DEFS|PARAM)$/;
const PICTURE = /^(IMG|SVG|CANVAS|VIDEO)$/;
const FOREIGN = /^(IFRAME|OBJECT|EMBED|FRAME)$/;
const OPAQUE_INLINE = /^(BUTTON|INPUT|SELECT|TEXTAREA|SVG|IMG|SCRIPT|STYLE|CANVAS|VIDEO|LABEL|SLOT)$/;
const LARGE = /^(table|image|text|chart|heading)$/; // may be cut by the viewport to a small part
const MARK = "data-clq";

const pictureSizes = {}; // natural width and height of background pictures, by their URL

// Loads the background pictures of the page, so that their sizes are known.
async function prepare() {
  const sources = new Set();
  for (const element of document.querySelectorAll("body *")) {
    const style = getComputedStyle(element);
    const source = /^url\("?(.*?)"?\)/.exec(style.backgroundImage);
    if (source && source[1].length < 4000 && style.backgroundRepeat !== "repeat") sources.add(source[1]);
    if (sources.size > 60) break;
  }
  const load = (source) => new Promise((resolve) => {
    const image = new Image();
    image.onload = image.onerror = () => resolve((pictureSizes[source] = [image.naturalWidth, image.naturalHeight]));
    setTimeout(resolve, 800);
    image.src = source;
  });
  await Promise.all([...sources].filter((s) => !(s in pictureSizes)).map(load));
}

let marked = new Map(); // element of each mark

// Returns { boxes: [{ fine, rect, visible }], pseudo: [{ mark, which, fine }], foreign: [rect] }.
function extract() {
  const screen = viewport(), pageFontSize = px(getComputedStyle(document.body).fontSize) || 16;
  const found = [], pseudo = [], foreign = [];
  const inRun = new Set(); // inline elements whose text belongs to a run already
  const drawn = new Set(); // stand-ins for hidden inputs
  opaqueElements = new Map();
  clearMarks(document);
  marked = new Map();

  function add(fine, rect, clip, element) {
    const seen = intersect(intersect(rect, clip), screen);
    if (width(seen) < 4 || height(seen) < 4) return;
    const share = area(seen) / area(rect);
    if (share < 0.25 && !LARGE.test(fine)) return;
    found.push({ fine, rect: seen, share, element });
  }

  function addPseudo(fine, element, which) {
    const key = `${which} ${fine}`;
    if (!element.hasAttribute(MARK)) {
      element.setAttribute(MARK, marked.size + 1);
      marked.set(String(marked.size + 1), element);
    }
    const mark = element.getAttribute(MARK);
    if (pseudo.some((p) => p.mark === mark && p.which === which.slice(2))) return;
    pseudo.push({ mark, which: which.slice(2), fine, key });
  }

  function addIconPseudos(element) {
    for (const which of ["::before", "::after"]) {
      const style = pseudoStyle(element, which);
      if (style && isIconPseudo(style)) addPseudo("icon", element, which);
    }
  }

  const addToggle = (node, clip) => addDrawn(toggleFinding(node), node.element, clip);

  function addDrawn(finding, input, clip) {
    if (!finding) return;
    const key = finding.pseudo ? finding.pseudo[0] : finding.element || input;
    if (drawn.has(key)) return;
    drawn.add(key);
    if (finding.pseudo) addPseudo(finding.fine, ...finding.pseudo);
    else add(finding.fine, finding.rect, clip, key);
  }

  function visit(element, context) {
    const tag = tagOf(element);
    if (SKIPPED.test(tag)) return;
    const style = getComputedStyle(element), names = classes(element), rect = boundsOf(element);
    const opacity = context.opacity * +style.opacity;
    const box = ownBox(style, context.behind);
    const inner = { ...context, opacity, cursor: style.cursor, outer: context };
    const node = { element, tag, names, role: element.getAttribute("role") || "", style, rect, box, context, inner };
    if (tag === "INPUT" && /^(checkbox|radio)$/.test(element.type)) return addToggle(node, context.clip);
    if (style.display === "none") return;
    if (isNotDrawn(element, style, opacity)) return isForReaders(style, rect) ? visitHiddenInputs(element, context) : undefined;

    const clip = clips(element, style, rect, context);
    inner.clip = clip.children;
    inner.absoluteClip = clip.absolute;
    inner.behind = backgroundBelow(element, style, box, context.behind, rect);
    if (opensNavigation(node)) inner.navigation = true;
    if (closesNavigation(node)) inner.navigation = false;
    const visible = style.visibility === "visible";
    const visitChildren = () => childElements(element).forEach((child) => visit(child, inner));

    if (tag === "TABLE" && visible) {
      const table = tableFinding(node);
      if (table) add(table.fine, table.rect, clip.own, element);
      inner.navigation = false;
    }
    if (FOREIGN.test(tag)) {
      const seen = intersect(intersect(rect, clip.own), screen);
      if (visible && area(seen) > 400) foreign.push(seen);
      return;
    }
    if (PICTURE.test(tag)) {
      const picture = visible && pictureFinding(node);
      if (picture) add(picture.fine, picture.rect, clip.own, element);
      return;
    }
    if (tag === "INPUT" && (element.type === "hidden" || !visible)) return;
    const control = visible ? controlFinding(node) : undefined;
    if (control !== undefined) {
      if (control && control.rect) add(control.fine, control.rect, clip.own, control.element || element);
      if (control && control.pseudo) addPseudo(control.fine, ...control.pseudo);
      if (control && control.decorated) addIconPseudos(element);
      if (control ? !control.walkOn : tag !== "DIV") return;
    }
    if (visible && !context.clicked && area(rect) > 0 && visitClickable(node, clip)) return visitChildren();

    const icon = isIcon(element, style);
    if (visible && visitIcon(node, icon, clip)) return;
    if (visible && isHeading(node) && !context.clicked) visitHeading(node, clip);
    if (tag === "PRE" && visible && !context.clicked) visitCode(node, clip);
    if (visible && !icon) {
      if (!context.clicked && !inner.heading && !inner.code) visitText(node, clip);
      else if (!context.badge && !inner.code) visitInnerBadge(node, clip);
    }
    visitChildren();
  }

  // Inputs that only screen readers find, with a drawing beside them: of a check box, or a slider's track.
  function visitHiddenInputs(element, context) {
    for (const input of element.querySelectorAll("input")) {
      if (/^(checkbox|radio)$/.test(input.type)) {
        const label = (input.labels && input.labels[0]) || null;
        const fine = input.getAttribute("role") === "switch" ? "switch" : input.type;
        addDrawn(drawnToggle(input, label, fine, context), input, context.clip);
      } else if (input.type === "range") {
        const knob = parentOf(element);
        add("slider", sliderOfKnob(knob, boundsOf(knob)), context.clip, knob);
      }
    }
  }

  // Returns whether the element is one finding, in which only decorations are left to be found.
  function visitClickable(node, clip) {
    const { element, style, rect, inner } = node;
    const named = isClickable(node);
    if (!named && !hasOwnPointer(node)) return false;
    if (isClickableContainer(node)) return false;
    const finding = clickableFinding(node, !named);
    if (!finding) return false;
    for (const r of finding.rects) add(finding.fine, r, finding.clipped ? clip.children : clip.own, element);
    inner.clicked = true;
    const icon = backgroundIconRect(node, pictureSizes);
    if (icon) add("icon", icon, EVERYWHERE, element);
    addIconPseudos(element);
    return true;
  }

  // Returns whether the element is an icon and nothing else.
  function visitIcon(node, icon, clip) {
    const { element, tag, rect, style } = node;
    if (icon && larger(node) <= 72 && smaller(node) >= 4) {
      const finding = iconFinding(node, icon);
      add(finding.fine, finding.rect, clip.own, element);
      return tag !== "A" && tag !== "BUTTON";
    }
    if (icon && smaller(node) < 4) {
      addIconPseudos(element);
      return true;
    }
    if (!icon) addIconPseudos(element);
    const seen = area(intersect(intersect(rect, clip.own), screen));
    if (isBackgroundPicture(node, seen)) add("image", rect, clip.own, element);
    const small = !icon && width(rect) >= 14 ? backgroundIconRect(node, pictureSizes) : null;
    if (small) add("icon", small, clip.own, element);
    return false;
  }

  function visitHeading({ element, inner, context }, clip) {
    const badges = [...element.querySelectorAll("*")].filter((e) => {
      const style = getComputedStyle(e);
      return isBadge(e, style, ownBox(style, context.behind), boundsOf(e));
    }).map(boundsOf);
    const rects = textRects(element).filter((r) => area(intersect(r, clip.children)) > 0 &&
      !badges.some((b) => area(intersect(b, r)) > 0.8 * area(r)));
    if (textOf(element).length < 2 || !rects.length) return;
    add("heading", union(rects), clip.children, element);
    inner.heading = true;
  }

  function visitCode({ element, box, rect, inner }, clip) {
    const rects = textRects(element);
    if (textOf(element).length > 1) add("text", box.any || !rects.length ? rect : union(rects), clip.own, element);
    inner.code = true;
  }

  // A badge inside a button, a link or a heading.
  function visitInnerBadge(node, clip) {
    const { element, names, style, rect, box, inner } = node, text = textOf(element);
    if (!box.any || !text || text.length > 16 || height(rect) > 28) return;
    if (!BADGE.test(names) && !isBadge(element, style, box, rect)) return;
    add("badge", rect, clip.own, element);
    inner.badge = true;
  }

  // Runs of inline text: the text nodes of an element with the inline elements between them.
  function visitText(node, clip) {
    const { element, names, style, rect, box, inner } = node;
    if (inRun.has(element)) {
      if (box.any && isInline(style) && isBadge(element, style, box, rect)) addBadge(node, clip, "badge", rect);
      return;
    }
    if (isAvatar(node)) return addBadge(node, clip, "image", rect);
    const seen = BADGE.test(names) ? visibleBox(node) : node;
    if (isBadge(element, style, seen.box, seen.rect)) return addBadge(node, clip, "badge", seen.rect);
    let run = null;
    const start = () => (run ||= { rects: [], own: 0, length: 0, text: "" });
    const finish = () => {
      if (run && run.own) addRun(run, style, clip, element);
      run = null;
    };
    for (const child of childNodes(element)) {
      if (child.nodeType === 3) {
        if (!child.nodeValue.trim()) continue;
        const rects = textRects(child), text = child.nodeValue.trim();
        if (!rects.length) continue;
        start().rects.push(...rects);
        run.own += text.length;
        run.length += text.length;
        run.text += text;
      } else if (child.nodeType === 1) {
        const s = getComputedStyle(child), tag = tagOf(child);
        if (tag === "BR" || s.display === "none") continue;
        const breaks = !isInline(s) || /flex|grid/.test(style.display) || s.position === "absolute" || s.float !== "none";
        if (breaks) finish();
        if (breaks || isOwnThing(child, s, tag)) continue;
        const box = s.display !== "inline" && ownBox(s, inner.behind);
        if (box && (box.sides >= 3 || box.filled)) continue;
        // A run of inline elements alone: each is a run of its own.
        if (run === null && tag !== "A" && !textFollows(child)) continue;
        start();
        inRun.add(child);
        const before = run.length;
        addInline(child, run, tag === "A");
        if (run.length > before) run.text += textOf(child);
      }
    }
    finish();
  }

  const isOwnThing = (element, style, tag) => OPAQUE_INLINE.test(tag) || BADGE.test(classes(element)) ||
    BUTTON.test(classes(element)) || isIcon(element, style);

  function textFollows(element) {
    for (let n = element.nextSibling; n; n = n.nextSibling) {
      if (n.nodeType === 3 && n.nodeValue.trim()) return true;
      if (n.nodeType === 1 && !isInline(getComputedStyle(n))) return false;
    }
    return false;
  }

  function addInline(element, run, inLink) {
    for (const child of childNodes(element)) {
      if (child.nodeType === 3) {
        const rects = child.nodeValue.trim() ? textRects(child) : [];
        if (!rects.length) continue;
        const length = child.nodeValue.trim().length;
        run.rects.push(...rects);
        run.own += inLink ? 0 : length;
        run.length += length;
      } else if (child.nodeType === 1) {
        const style = getComputedStyle(child), tag = tagOf(child);
        if (style.display === "none" || style.visibility !== "visible" || +style.opacity < 0.15) continue;
        if (isOwnThing(child, style, tag) || !isInline(style)) continue;
        if (/^inline-/.test(style.display) && ownBox(style, [255, 255, 255]).sides >= 3) continue;
        inRun.add(child);
        addInline(child, run, inLink || tag === "A");
      }
    }
  }

  function addRun(run, style, clip, element) {
    const rects = run.rects.map((r) => intersect(r, clip.children)).filter((r) => area(r) > 0);
    if (!rects.length || px(style.fontSize) < 6 || PRIVATE_USE.test(run.text)) return;
    if (run.text.replace(SEPARATORS, "") === "") return;
    const fine = isLargeText(px(style.fontSize), run.length, pageFontSize) ? "heading" : "text";
    add(fine, union(rects), clip.children, element);
  }

  function addBadge(node, clip, fine, rect) {
    add(fine, rect, clip.own, node.element);
    node.inner.clicked = node.inner.badge = true;
  }

  visit(document.body, {
    opacity: 1, clip: EVERYWHERE, absoluteClip: EVERYWHERE, behind: pageColour(), navigation: false,
  });
  return { boxes: found.map(seenBox).filter((b) => b), pseudo, foreign };
}

// What can be seen of a finding, or null where too little is.
function seenBox({ fine, rect, share, element }) {
  const seen = uncovered(element, rect);
  if (seen.visible < (/^(table|image)$/.test(fine) ? 0.35 : 0.5)) return null;
  const left = area(seen.rect) / (area(rect) / Math.max(share, 0.3));
  if (seen.cut && left < 0.3 && !/^(table|image|text)$/.test(fine)) return null;
  return { fine, rect: seen.rect, visible: seen.visible };
}

// boxes: [{ mark, which, fine, rect }], as the browser says. Returns { fine, rect, visible } or null for each.
function pseudoBoxes(boxes) {
  return boxes.map(({ mark, fine, rect }) => {
    const element = marked.get(mark);
    let seen = intersect(rect, viewport());
    for (let e = element; e && e !== document.body; e = parentOf(e)) {
      const style = getComputedStyle(e);
      if (+style.opacity < 0.15 || (e === element && style.visibility !== "visible")) return null;
      if (e !== element && (style.overflowX !== "visible" || style.overflowY !== "visible") && !isInline(style))
        seen = intersect(seen, boundsOf(e));
      if (style.position === "fixed") break;
    }
    const isToggle = fine === "checkbox" || fine === "radio";
    const kind = isToggle && width(rect) > SWITCH_ASPECT * height(rect) ? "switch" : fine;
    if (width(seen) < 4 || height(seen) < 4) return null;
    return seenBox({ fine: kind, rect: seen, share: 1, element });
  });
}

function clearMarks(root) {
  for (const element of root.querySelectorAll("*")) {
    element.removeAttribute(MARK);
    if (element.shadowRoot) clearMarks(element.shadowRoot);
  }
}

function pageColour() {
  const style = getComputedStyle(document.documentElement);
  const dark = /dark/.test(style.colorScheme) && matchMedia("(prefers-color-scheme: dark)").matches;
  return over(colour(style.backgroundColor), dark ? [18, 18, 18] : [255, 255, 255]);
}

// A number that changes when anything in the view moves.
function layoutHash() {
  let sum = 0;
  for (const element of [...document.querySelectorAll("body *")].slice(0, 1500)) {
    const r = element.getBoundingClientRect();
    if (r.bottom > 0 && r.top < innerHeight) sum += r.left + r.top * 3 + r.width * 5 + r.height * 7;
  }
  return Math.round(sum);
}
