// The rules: what an element is, decided by what a person can see where the page allows it, and by tag,
// role and class names where it does not. docs/webui_data.md says the same in words.
//
// A node is { element, tag, names (its classes), role, style, rect, box (ownBox), context, inner }:
// context is what it has from its ancestors, inner what its children will have.
// A finding is { fine, rect }; the writer maps `fine` to one of the 14 classes.

const ICON_FONT = /material|icon|awesome|glyph|feather|remix|themify|simple-line|dripicon|boxicon|mdi|nucleo|ionic|weather|flag|linea|typicon|entypo|etmodules|pe-icon|revicons|slick|nifty|codicon/i;
const NAVIGATION = /(^|[\s_-])(nav|navbar|navigation|menu|menubar|submenu|sidebar|sidenav|sidemenu|pagination|pager|paginate_button|breadcrumbs?|tabs|tablist|tabbar|dropdown-menu|topbar|topnav|toctree|offcanvas|treeview|stepper|list-group|bottom-nav|subnav|drawer)($|[\s_-]|__)/i;
const BUTTON = /(^|\s)(btn|button|ui button|mdl-button|uk-button|pure-button|fr-btn|govuk-button|usa-button|nhsuk-button|slds-button|ui-button|ui-btn|mdc-button|waves-button)(\s|$|--)/i;
const BADGE = /(^|[\s_-])(badge|chip|tag|pill|label-(default|primary|success|info|warning|danger)|uk-label|uk-badge|label)(\s|$|[_-])/i;
const SELECT = /select2-selection(\s|$)|choices__inner|selectize-input|chosen-single|ts-control|bootstrap-select>|SumoSelect|nice-select|ui-selectmenu-button|vscomp-toggle|multiselect dropdown-toggle|ui (fluid )?(search )?(selection )?dropdown|selectric(\s|$)|(^|\s)(el-select__wrapper|n-base-selection|ant-select-selector|t-select|arco-select-view|layui-select-title)(\s|$)/;
const SLIDER = /(^|\s)(noUi-target|irs|ui-slider|range-slider|mdl-slider__container|slider-horizontal|bootstrap-slider|rc-slider|el-slider__runway|arco-slider|t-slider|layui-slider|v-slider|q-slider|n-slider|ant-slider|van-slider)(\s|$)/;
const SLIDER_HANDLE = ".noUi-handle,.ui-slider-handle,.el-slider__button,.v-slider-thumb,.n-slider-handle,.ant-slider-handle,.van-slider__button,.arco-slider-btn,.t-slider__button";
const PROGRESS = /(^|\s)([a-z]{1,6}[- ])?progress(\s|$)/i;
const SWITCH = /switch|toggle|lever|switchery/i;
const SWITCH_WIDGET = /(^|\s)([a-z]{1,6}-)?(form-)?switch(__core)?(\s|$)/;
const SWITCH_HOST = /(^|[\s_-])(switch|toggle)(?!r|-group)/i;
// Wrappers whose border is drawn by a child that lies on top of them.
const INPUT_FRAME = /(^|\s)(n-input|q-field__control)(\s|$)/;
const LOGO = /(^|[\s_-])(logo|brand)([\s_-]|$)/i;
const DRAWN_CHARACTER = /^[▶▼►▾▸‹›«»×✕✖☰✓✔★☆⋮⋯≡⟩❯❮→←↑↓]$/;
const NEVER_BADGE = /^(TD|TH|LI|PRE|CODE|KBD|MARK|DT|DD|LABEL|H\d|TR|INS|SUMMARY|OUTPUT|VAR|SAMP|TT)$/;
const SWITCH_ASPECT = 1.45; // a drawn toggle wider than this is a switch, not a check box
const AVATAR_TEXT = 3; // letters in a circle
const ICON_PX = 56, PICTURE_ICON_PX = 36, BUTTON_HEIGHT_PX = 110;

const smaller = (node) => Math.min(width(node.rect), height(node.rect));
const larger = (node) => Math.max(width(node.rect), height(node.rect));

// ---- context

const opensNavigation = ({ tag, role, names, rect }) =>
  tag === "NAV" || /^(navigation|menu|menubar|tablist|tree)$/.test(role) ||
  (NAVIGATION.test(names) && !/no-nav|nav-item-btn/.test(names) && !/^(BODY|HTML|BUTTON)$/.test(tag) &&
    area(rect) < 0.75 * area(viewport()));
const closesNavigation = ({ tag, context }) => tag === "FOOTER" || (tag === "MAIN" && !context.navigation);

// ---- tables, pictures, form controls: { fine, rect, keepWalking } or null

function tableFinding({ element, tag, role, rect }) {
  if (tag !== "TABLE" || /presentation|none/.test(role) || element.querySelector("table")) return null;
  const rows = [...element.rows];
  const columns = Math.max(0, ...rows.slice(0, 6).map((row) => row.cells.length));
  return rows.length >= 2 && columns >= 2 && area(rect) > 1600 ? { fine: "table", rect } : null;
}

function pictureFinding(node) {
  const { element, tag, rect } = node;
  if (tag === "IMG") {
    const source = element.currentSrc || element.src;
    const isEmpty = element.complete && element.naturalWidth <= 1 && !/\.svg|image\/svg/.test(source);
    if (isEmpty || larger(node) < 6) return null;
    const isPhoto = /\.jpe?g|\.webp/i.test(source);
    return { fine: larger(node) <= PICTURE_ICON_PX && !isPhoto ? "icon" : "image", rect };
  }
  if (tag === "SVG") {
    if (larger(node) < 5 || !element.childElementCount) return null;
    if (larger(node) <= ICON_PX) return { fine: "icon", rect };
    const detailed = element.querySelectorAll("*").length > 25;
    return { fine: detailed && width(rect) >= 100 && height(rect) >= 60 ? "chart" : "image", rect };
  }
  if (tag === "CANVAS") return width(rect) >= 40 && height(rect) >= 24 ? { fine: "chart", rect } : null;
  return width(rect) >= 60 && height(rect) >= 40 ? { fine: "video", rect } : null;
}

function controlFinding(node) {
  const { element, tag, names, role, style, rect, box, context } = node;
  const type = tag === "INPUT" ? element.type : "";
  if (tag === "PROGRESS" || tag === "METER" || role === "progressbar" || PROGRESS.test(names)) {
    const isBar = height(rect) >= 2 && width(rect) >= 24 && width(rect) > 2 * height(rect);
    return isBar ? { fine: "progress", rect: atLeastHigh(rect, 8) } : null;
  }
  if (role === "slider" && width(rect) < 30) return { fine: "slider", rect: sliderOfKnob(element, rect) };
  if (type === "range" || role === "slider" || SLIDER.test(names))
    return width(rect) >= 20 ? { fine: "slider", rect: sliderRect(element, type, names, rect) } : null;
  if (/^(submit|button|reset)$/.test(type))
    return width(rect) > 8
      ? { fine: box.any || style.appearance !== "none" ? "button" : "link", rect, decorated: true }
      : null;
  if (type === "image" || type === "color") return { fine: "button", rect };
  const fits = width(rect) >= 16 && height(rect) >= 10;
  if (tag === "INPUT") {
    if (!fits || node.inner.opacity < 0.3) return null;
    const root = element.getRootNode();
    const host = root instanceof ShadowRoot ? root.host.tagName : "";
    const wrapped = inputRect(node);
    const isSelect = (role === "combobox" && element.readOnly) || /-(SELECT|DROPDOWN)$/.test(host) ||
      (element.readOnly && /select/i.test(names + classes(element.parentElement || element)));
    return { fine: isSelect ? "select" : "text_input", rect: wrapped };
  }
  const editable = element.isContentEditable && !(element.parentElement || element).isContentEditable;
  if (tag === "TEXTAREA" || editable || (role === "textbox" && !SELECT.test(names)))
    return fits && node.inner.opacity > 0.3
      ? { fine: "text_input", rect: tag === "TEXTAREA" ? inputRect(node) : rect } : null;
  if (isSelectBox(node)) {
    const replaced = tag === "SELECT" && (+style.opacity < 0.3 || /select2-hidden|selectized|tomselected/.test(names));
    return fits && !replaced ? { fine: "select", rect: tag === "SELECT" ? inputRect(node) : rect } : null;
  }
  if (/^(checkbox|radio|switch|menuitemcheckbox)$/.test(role)) {
    const named = role === "menuitemcheckbox" ? "checkbox" : role;
    if (isToggleSize(rect) && (textOf(element).length < 4 || named === "switch"))
      return { fine: width(rect) >= SWITCH_ASPECT * height(rect) ? "switch" : named, rect };
    const mark = drawnMark(descendants(element), named, context); // a row: its text is looked at, too
    return mark ? { ...mark, walkOn: true } : undefined;
  }
  if (SWITCH_WIDGET.test(names) && isTrack(rect) && box.any) return { fine: "switch", rect };
  return undefined; // not a control
}

const isSelectBox = ({ element, tag, names, role, box, rect }) => /^(ION-)?SELECT$/.test(tag) || SELECT.test(names) ||
  (role === "combobox" && !element.querySelector("input")) ||
  (box.any && height(rect) < 64 && element.querySelector("[role=combobox],[aria-haspopup=listbox]")) ||
  (element.getAttribute("aria-haspopup") === "listbox" && (tag === "BUTTON" || tag === "DIV"));

// The track below a knob that is a slider by its role: the nearest ancestor that is long and low.
function sliderOfKnob(element, knob) {
  let e = parentOf(element);
  for (let level = 0; e && level < 4; level++, e = parentOf(e)) {
    const r = boundsOf(e);
    if (width(r) >= 60 && width(r) > 3 * width(knob) && height(r) <= 64)
      return atLeastHigh([Math.min(r[0], knob[0]), knob[1], Math.max(r[2], knob[2]), knob[3]], 16);
  }
  return knob;
}

function sliderRect(element, type, names, rect) {
  if (type === "range") return atLeastHigh(rect, 16);
  const handles = [...element.querySelectorAll(SLIDER_HANDLE)].map(boundsOf).filter((r) => area(r) > 0);
  if (height(rect) >= 8 && !handles.length) return rect;
  return handles.length ? union([rect, ...handles]) : atLeastHigh(rect, 16);
}

// The rectangle of an input: that of the wrapper which draws its border, at most 3 levels up.
function inputRect({ element, style, rect, box, context }) {
  if (box.sides >= 1 || box.filled || box.shadow) return rect;
  const native = style.appearance !== "none" && style.appearance !== "textfield";
  if (native && style.borderStyle !== "none" && px(style.borderTopWidth) > 0) return rect;
  let parent = parentOf(element), around = context.outer;
  for (let level = 0; parent && around && level < 3; level++, parent = parentOf(parent), around = around.outer) {
    const outer = boundsOf(parent);
    if (height(outer) > height(rect) + 34 || width(outer) > 1.6 * width(rect) + 60) break;
    if (parent.querySelectorAll("input,select,textarea,button").length > 2) break;
    if (INPUT_FRAME.test(classes(parent)) || ownBox(getComputedStyle(parent), around.behind).any) return outer;
  }
  return rect;
}

// ---- check boxes, radio buttons, switches: the native control, or what is drawn in its place

// Returns { fine, rect }, { fine, pseudo: [element, which] } or null.
function toggleFinding(node) {
  const { element, style, rect, box, names, role } = node;
  const label = (element.labels && element.labels[0]) || null;
  const around = [names, classes(element.parentElement || element), label ? classes(label) : ""].join(" ");
  const isSwitch = role === "switch" ||
    ((SWITCH.test(around) || switchHost(element)) && !/btn|dropdown|collapse|nav/.test(around));
  const native = style.appearance !== "none", opacity = node.inner.opacity;
  const fine = isSwitch ? "switch" : element.type;
  const shown = style.display !== "none" && opacity > 0.2 && style.visibility === "visible" &&
    smaller(node) >= 8 && rect[2] + scrollX > 0 && !isClippedAway(style);
  if (shown && (native || box.any || style.backgroundImage !== "none")) {
    const square = width(rect) / height(rect) < 1.3 && width(rect) < 22 && native;
    return { fine: isSwitch && square ? element.type : fine, rect };
  }
  const before = pseudoStyle(element, "::before"), after = pseudoStyle(element, "::after");
  if (style.display !== "none" && !native && opacity > 0.2 && (before || after))
    return { fine, pseudo: [element, before ? "::before" : "::after"] };
  return drawnToggle(element, label, fine, node.context);
}

function drawnToggle(element, label, fine, context) {
  const menu = /accordion|collapse|tab|nav|menu|btn|toggler|hamburger/;
  if (element.hidden || (label && (NAVIGATION.test(classes(label)) || menu.test(classes(label) + classes(element)))))
    return null;
  if (fine === "switch") {
    const track = drawnTrack(descendants(switchHost(element) || label || element.parentElement), context);
    if (track) return track;
  }
  const near = new Set(), add = (e) => e && [e, ...e.querySelectorAll("*")].forEach((x) => near.add(x));
  add(element.nextElementSibling);
  add(label || element.closest("label"));
  if (element.parentElement) [element.parentElement, ...element.parentElement.children].forEach((x) => near.add(x));
  return drawnMark([...near].filter((e) => e !== element && e.tagName !== "INPUT"), fine, context);
}

const descendants = (element) => {
  const below = childElements(element);
  return below.concat(...below.map(descendants)).slice(0, 40);
};
const isToggleSize = (r) => Math.min(width(r), height(r)) >= 9 && width(r) <= 70 && height(r) <= 44;
const isTrack = (r) => width(r) >= 20 && width(r) <= 70 && height(r) >= 8 && height(r) <= 40 && width(r) >= 1.3 * height(r);

// The ancestor that is named a switch, where the input and its drawing are apart.
function switchHost(element) {
  let e = parentOf(element);
  for (let level = 0; e && level < 6; level++, e = parentOf(e))
    if (SWITCH_HOST.test(classes(e)) && height(boundsOf(e)) <= 64) return e;
  return null;
}

// A switch's track with the knob on it.
function drawnTrack(elements, context) {
  const drawn = elements.filter((e) => ownBox(getComputedStyle(e), context.behind).any && e.tagName !== "INPUT");
  const track = drawn.find((e) => isTrack(boundsOf(e)) && textOf(e).length < 4);
  if (!track) return null;
  const r = boundsOf(track);
  const knobs = drawn.map(boundsOf).filter((k) => isToggleSize(k) && area(intersect(k, r)) > 0.3 * area(k));
  return { fine: "switch", rect: union([r, ...knobs]), element: track };
}

// What is drawn for a check box, a radio button or a switch: an element with a box, a pseudo-element or a glyph.
function drawnMark(elements, fine, context) {
  const track = fine === "switch" ? drawnTrack(elements, context) : null;
  if (track) return track;
  for (const candidate of elements.slice(0, 24)) {
    if (/(^|\s)(icon|fa|mdi|bi)(\s|$|-)/.test(classes(candidate))) continue;
    const style = getComputedStyle(candidate), r = boundsOf(candidate);
    if (style.display === "none" || textOf(candidate).length >= 2) continue;
    if (width(r) < 10 || width(r) > 64 || height(r) < 10 || height(r) > 40 || width(r) > 3.2 * height(r)) continue;
    if (!ownBox(style, context.behind).any) continue;
    return { fine: width(r) >= SWITCH_ASPECT * height(r) ? "switch" : fine, rect: r, element: candidate };
  }
  for (const candidate of elements.slice(0, 8))
    for (const which of ["::before", "::after"]) {
      const style = pseudoStyle(candidate, which);
      if (!style || PRIVATE_USE.test(style.content)) continue;
      if (!ownBox(style, context.behind).any && !/url\(/.test(style.backgroundImage) && !pseudoText(style)) continue;
      const w = px(style.width), h = px(style.height);
      if (w >= 9 && w <= 64 && h >= 9 && h <= 44) return { fine, pseudo: [candidate, which] };
    }
  const glyph = elements.find((e) => {
    const r = boundsOf(e), drawsIcon = tagOf(e) === "SVG" || isIcon(e, getComputedStyle(e)) === true;
    return drawsIcon && width(r) >= 12 && width(r) <= 40 && height(r) >= 12 && height(r) <= 40;
  });
  return glyph ? { fine, rect: boundsOf(glyph), element: glyph } : null;
}

// ---- what can be clicked

const isClickable = ({ element, tag, role, names, rect, style, context, inner }) =>
  (tag === "A" && (element.hasAttribute("href") || role || style.cursor === "pointer" || (inner.navigation && names))) ||
  tag === "BUTTON" || tag === "SUMMARY" || /^(button|link|menuitem|tab|treeitem|option)$/.test(role) ||
  (BUTTON.test(names) && !/group|toolbar/.test(names) && /^(SPAN|LABEL|DIV|LI|A)$/.test(tag) && height(rect) < 90);

// An element without such a tag or role, whose pointer says that it can be clicked.
const hasOwnPointer = ({ tag, style, context }) => style.cursor === "pointer" &&
  context.cursor !== "pointer" && !/^(LABEL|TR|TD|BODY|HTML|LI|UL|TABLE|HEADER)$/.test(tag);

// A clickable element that holds other things to be found: a card, a row, a hero picture.
function isClickableContainer({ element, rect }) {
  const blocks = element.querySelectorAll("h1,h2,h3,h4,h5,h6,p,ul,table,article,section,input,select,textarea");
  return (height(rect) > BUTTON_HEIGHT_PX && textOf(element) !== "") || (blocks.length > 0 && height(rect) > 64) ||
    area(rect) > 0.3 * area(viewport()) || element.querySelectorAll("a[href],button").length > 0;
}

// Returns { fine, rects } or null (its children are looked at).
function clickableFinding(node, byPointer) {
  const { element, tag, names, role, style, context, inner } = node;
  const { box, rect } = visibleBox(node);
  const text = textOf(element), textLines = text ? textRects(element) : [];
  const drawsIcon = isIcon(node.element, style);
  const iconIsAllText = text.length <= 28 && [...element.querySelectorAll("*")].some(
    (e) => isIcon(e, getComputedStyle(e)) === true && textOf(e) === text);
  const hasText = text !== "" && textLines.length > 0 && !drawsIcon && !iconIsAllText;
  const hasPicture = element.querySelector("img,svg,canvas,video,i,[class*=icon],[class*=fa-]") ||
    descendants(element).some((e) => /^(SVG|IMG|I)$/.test(tagOf(e))) ||
    drawsIcon || pseudoStyle(element, "::before") || pseudoStyle(element, "::after");
  const namedButton = BUTTON.test(names);
  const onlyPicture = !hasText && (filledByPicture(node) ||
    (element.querySelector("img,picture,canvas") && !(box.any && height(node.rect) < 70)));
  if (onlyPicture || (byPointer && !box.any) || (hasText && !box.any && holdsOnlyBadges(node, text))) return null;
  if (BADGE.test(names) && !namedButton && tag !== "BUTTON" && height(node.rect) <= 27 && box.any && hasText)
    return { fine: "badge", rects: [rect] };
  const menuEntry = inner.navigation && !namedButton && !(tag === "BUTTON" && !/nav|menu|tab|link/i.test(names));
  const isLogo = LOGO.test(names) && !namedButton;
  const wide = width(node.rect) >= 0.96 * width(viewport());
  if (box.any && (((hasText || hasPicture) && !isLogo && !menuEntry && !wide) || namedButton))
    return { fine: "button", rects: [rect] };
  if (hasText && context.heading) return { fine: null, rects: [] }; // the heading is the finding
  if (hasText && (inner.navigation || /^(menuitem|tab|treeitem|option)$/.test(role))) {
    const framed = box.any && height(node.rect) < 90 && width(node.rect) < 0.9 * width(viewport());
    return { fine: "nav_item", rects: [framed ? rect : union([...textLines, ...iconRects(element)])], clipped: true };
  }
  if (hasText && context.code) return { fine: null, rects: [] }; // a link in a block of code
  if (hasText) {
    const rows = lines(textLines);
    const block = (rows.length > 2 && !isInline(style)) || (style.display === "inline-block" && rows.length > 1);
    return { fine: "link", rects: block ? [union(rows)] : rows, clipped: true };
  }
  return box.any && hasPicture && inner.navigation ? { fine: "button", rects: [rect] } : null;
}

// The own box of an element, or that of the child which fills it.
function visibleBox({ element, rect, box, context }) {
  if (box.any) return { box, rect };
  for (const child of childElements(element)) {
    const r = boundsOf(child), share = area(r) / area(rect);
    if (share < 0.7 || share > 1.05 || child.tagName === "IMG") continue;
    const inside = ownBox(getComputedStyle(child), context.behind);
    if (inside.any) return { box: inside, rect: r };
  }
  return { box, rect };
}

// A logo or a photo that can be clicked: larger than an icon, and hardly anything around it.
const filledByPicture = ({ element, rect }) => [...element.querySelectorAll("img,svg,canvas")].some((e) => {
  const r = boundsOf(e);
  return Math.max(width(r), height(r)) > ICON_PX && area(r) > 0.5 * area(rect);
});

function holdsOnlyBadges({ element, context }, text) {
  const badges = [...element.querySelectorAll("*")].filter((e) => {
    const own = textOf(e);
    if (e.children.length > 1 || !own || own.length > 16) return false;
    const style = getComputedStyle(e), r = boundsOf(e), box = ownBox(style, context.behind);
    return height(r) <= 28 && box.any && (BADGE.test(classes(e)) || isBadge(e, style, box, r));
  });
  const bare = (s) => s.replace(/\s/g, "").length;
  return badges.length > 0 && bare(badges.map(textOf).join("")) >= bare(text);
}

const iconRects = (element) => [...element.querySelectorAll("i,svg,img")]
  .filter((e) => e.tagName !== "I" || isIcon(e, getComputedStyle(e)))
  .map(boundsOf).filter((r) => width(r) > 4 && width(r) < 40);

// ---- icons

// true: a glyph of an icon font; "background": a small background or mask; false: no icon.
function isIcon(element, style) {
  const tag = tagOf(element);
  if (!/^(I|SPAN|EM|B|DIV|A|BUTTON)$/.test(tag) && !tag.includes("-")) return false;
  const text = textOf(element), family = style.fontFamily.split(",")[0];
  if (ICON_FONT.test(family) && text && text.length < 28 && !element.children.length &&
    /material|icon|symbol/i.test(style.fontFamily + classes(element))) return true;
  if ([...element.childNodes].some((n) => n.nodeType === 1 && n.tagName !== "SLOT")) return false;
  if (text && !(text.length <= 2 && PRIVATE_USE.test(text))) return false;
  if (text) return true;
  for (const which of ["::before", "::after"]) {
    const pseudo = pseudoStyle(element, which);
    if (!pseudo) continue;
    const drawn = pseudoText(pseudo);
    if (drawn && (PRIVATE_USE.test(drawn) || ICON_FONT.test(pseudo.fontFamily))) return true;
    if (/url\(/.test(pseudo.backgroundImage) || hasMask(pseudo)) return true;
  }
  return /url\(/.test(style.backgroundImage) || hasMask(style) ? "background" : false;
}

function isIconPseudo(style) {
  const drawn = pseudoText(style);
  if (drawn && (PRIVATE_USE.test(drawn) || DRAWN_CHARACTER.test(drawn))) return true;
  if (drawn && ICON_FONT.test(style.fontFamily) && drawn.length < 30 && !/counter|attr/.test(drawn)) return true;
  return /url\(/.test(style.backgroundImage) || hasMask(style) || /^url\(/.test(style.content);
}

// An icon's rectangle without padding, and no larger than its glyph.
function iconFinding({ rect, style }, kind) {
  const inside = [
    rect[0] + px(style.paddingLeft), rect[1] + px(style.paddingTop),
    rect[2] - px(style.paddingRight), rect[3] - px(style.paddingBottom),
  ];
  let r = width(inside) < 4 || height(inside) < 4 ? rect : inside;
  const size = px(style.fontSize);
  const loose = size < 0.66 * height(r) || size * 1.6 < width(r);
  if (kind === true && loose && !/url\(/.test(style.backgroundImage) && !hasMask(style)) {
    const x = (r[0] + r[2]) / 2, y = (r[1] + r[3]) / 2, half = 0.55 * size;
    r = [x - half, y - half, x + half, y + half];
  }
  const isFace = kind === "background" && Math.max(width(rect), height(rect)) >= 28 &&
    /\.jpe?g|\.webp|photo|avatar|face|user/i.test(style.backgroundImage);
  return { fine: isFace ? "image" : "icon", rect: r };
}

function isBackgroundPicture({ tag, style, rect }, seen) {
  const tiles = style.backgroundRepeat === "repeat" && style.backgroundSize === "auto";
  return /url\(/.test(style.backgroundImage) && width(rect) >= 40 && height(rect) >= 40 && !tiles &&
    !/^(BODY|HTML)$/.test(tag) && !/data:image\/svg|\.svg/.test(style.backgroundImage) &&
    seen < 0.6 * area(viewport());
}

// The rectangle of a small picture that is drawn once in the background, beside a text; or null.
function backgroundIconRect({ style, rect }, sizes) {
  const source = /^url\("?(.*?)"?\)/.exec(style.backgroundImage);
  if (!source || style.backgroundRepeat.startsWith("repeat")) return null;
  const natural = sizes[source[1]], wanted = style.backgroundSize.split(",")[0].trim().split(" ");
  let w, h;
  if (/px/.test(wanted[0])) {
    w = px(wanted[0]);
    h = /px/.test(wanted[1] || "") ? px(wanted[1]) : natural && natural[0] ? (w * natural[1]) / natural[0] : w;
  } else if (wanted[0] === "auto" && natural && natural[0]) [w, h] = natural;
  if (!(w >= 6 && h >= 6 && w <= 48 && h <= 48)) return null;
  const left = rect[0] + px(style.borderLeftWidth), top = rect[1] + px(style.borderTopWidth);
  const place = (value, room) => {
    const share = /(-?[\d.]+)%/.exec(value), shift = /([+-]?) ?(-?[\d.]+)px/.exec(value);
    return (share ? (px(share[1]) / 100) * room : 0) + (shift ? (shift[1] === "-" ? -1 : 1) * px(shift[2]) : 0);
  };
  const position = style.backgroundPosition.split(",")[0].match(/calc\([^)]*\)|\S+/g) || ["0px", "0px"];
  const x = left + place(position[0], rect[2] - px(style.borderRightWidth) - left - w);
  const y = top + place(position[1] || "50%", rect[3] - px(style.borderBottomWidth) - top - h);
  const r = intersect([x, y, x + w, y + h], rect);
  return width(r) >= 5 && height(r) >= 5 ? r : null;
}

// ---- texts

function isBadge(element, style, box, rect) {
  const text = textOf(element), named = BADGE.test(classes(element)), tag = tagOf(element);
  if (!text || text.length > (named ? 36 : 22) || element.children.length > 2) return false;
  const [w, h] = [width(rect), height(rect)];
  if (h < 9 || h > 32 || w < 8 || w > (named ? 260 : 170) || !(box.filled || box.sides >= 3)) return false;
  if (NEVER_BADGE.test(tag) || /^(CODE|PRE)$/.test((element.parentElement || element).tagName)) return false;
  if (named || tag === "P") return named;
  return (style.display !== "block" || style.position === "absolute") && style.display !== "inline" &&
    px(style.borderTopLeftRadius) >= 2 && box.filled && textRects(element).length <= 2;
}

// Initials in a circle stand for a picture.
function isAvatar({ element, rect, style, box }) {
  const [w, h] = [width(rect), height(rect)], text = textOf(element);
  const round = px(style.borderTopLeftRadius) >= 0.3 * h || /%/.test(style.borderTopLeftRadius);
  return text !== "" && text.length <= AVATAR_TEXT && h >= 26 && h <= 96 && w > 0.8 * h && w < 1.25 * h &&
    round && box.filled;
}

const isHeading = ({ tag, role, element }) => (/^H[1-6]$/.test(tag) || role === "heading") &&
  !element.querySelector("input,select,table,p,ul,div>div");

// Other text counts as a heading when it is much larger than the page's own.
const isLargeText = (fontSize, length, pageFontSize) =>
  fontSize >= Math.max(22, 1.45 * pageFontSize) && length <= 90;
const SEPARATORS = /[\s|·•/\\,;:.\-–—>«»()&]+/g;
