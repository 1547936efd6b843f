// Writes the address of this service into the examples of a page.
for (const place of document.querySelectorAll(".origin")) {
  place.textContent = new URL(".", document.baseURI).href.replace(/\/$/, "");
}
