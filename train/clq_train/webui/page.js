// What the driver does to a page beside extract/: before it loads (steady), and between pictures.

// Runs before the page's own scripts: nothing moves, random numbers and the date are those of the seed.
function steady(seed, startMs) {
  let state = seed >>> 0;
  Math.random = () => { // mulberry32
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const shift = startMs - Date.now(), RealDate = Date;
  window.Date = class extends RealDate {
    constructor(...args) {
      if (args.length) super(...args);
      else super(RealDate.now() + shift);
    }
    static now() { return RealDate.now() + shift; }
  };
  window.alert = window.confirm = window.prompt = () => null;
  const style = `*, *::before, *::after {
    animation-duration: .001s !important; animation-delay: 0s !important; transition: none !important;
    caret-color: transparent !important; scroll-behavior: auto !important; pointer-events: auto !important; }`;
  const add = () => {
    if (!document.documentElement) return setTimeout(add, 0);
    const element = document.createElement("style");
    element.textContent = style;
    (document.head || document.documentElement).appendChild(element);
  };
  add();
}

// Gives the two font families that most elements have another font.
async function swapFont(family) {
  await Promise.all(["", "bold "].map((weight) => document.fonts.load(`${weight}16px '${family}'`)));
  const elements = [...document.querySelectorAll("body *")].slice(0, 4000), counts = new Map();
  const fontOf = new Map(elements.map((e) => [e, getComputedStyle(e).fontFamily]));
  for (const font of fontOf.values()) counts.set(font, (counts.get(font) || 0) + 1);
  const special = /icon|awesome|material|glyph|feather|symbol|mono|code|courier|consolas/i;
  const common = [...counts].filter(([font]) => !special.test(font.split(",")[0]))
    .sort((a, b) => b[1] - a[1]).slice(0, 2).map(([font]) => font);
  for (const [element, font] of fontOf)
    if (common.includes(font)) element.style.setProperty("font-family", `'${family}', ${font}`, "important");
}

function darken(theme) {
  document.documentElement.style.colorScheme = "dark";
  const [name, value] = theme.split("=");
  if (theme.startsWith(".")) document.body.classList.add(...theme.slice(1).split("."));
  else if (name === "class") document.documentElement.classList.add(value);
  else if (name) document.documentElement.setAttribute(name, value);
}

// A page from right to left that is wider than the view: a picture of it shows another part than the one
// that its boxes are measured in. It is cut to the view.
function keepInPlace() {
  if (getComputedStyle(document.documentElement).direction !== "rtl" &&
    getComputedStyle(document.body).direction !== "rtl") return;
  document.documentElement.style.setProperty("overflow-x", "hidden", "important");
  document.body.style.setProperty("overflow-x", "clip", "important");
}

// Scrolls the page, or the largest element that scrolls where the page does not.
function scrollToFraction(fraction) {
  const height = Math.max(document.documentElement.scrollHeight, document.body.scrollHeight) - innerHeight;
  if (height > 40) return window.scrollTo(0, Math.round(fraction * height));
  let largest = null, size = 0;
  for (const e of document.querySelectorAll("body *")) {
    const scrolls = e.scrollHeight - e.clientHeight > 60 && e.clientHeight > 300 && e.clientWidth > 300 &&
      /auto|scroll/.test(getComputedStyle(e).overflowY);
    if (scrolls && e.clientHeight * e.clientWidth > size) [largest, size] = [e, e.clientHeight * e.clientWidth];
  }
  if (largest) largest.scrollTop = fraction * (largest.scrollHeight - largest.clientHeight);
}

// Opens a menu, a dialog or a fold. Returns whether there was one in the view.
function openSomething(which) {
  const openers = `[data-toggle=dropdown],[data-bs-toggle=dropdown],[data-toggle=modal],[data-bs-toggle=modal],
    [data-bs-toggle=collapse],[data-toggle=collapse],details>summary,.navbar-toggler,.dropdown-toggle,
    [aria-haspopup]:not([aria-haspopup=false]),[aria-expanded=false],[uk-toggle],.ui-selectmenu-button,
    [role=combobox],[data-clq-open]`;
  const inView = (r) => r.width > 4 && r.height > 4 && r.top >= 0 && r.left >= 0 &&
    r.bottom < innerHeight && r.right <= innerWidth;
  const leads = (e) => e.tagName === "A" && /^(https?:|[a-z].*\.html|\/)/.test(e.getAttribute("href") || "");
  const found = [...document.querySelectorAll(openers)]
    .filter((e) => inView(e.getBoundingClientRect()) && !leads(e));
  if (!found.length) return false;
  const one = found[Math.floor(which * found.length) % found.length];
  one.focus();
  one.click();
  return true;
}
