// Small pictures of the images that were given together; one is looked at at a time.

const strip = document.getElementById("strip");

/** Shows a button for each file, unless there is one only; `choose(file)` is called when pressed. */
export function fillStrip(files, choose) {
  for (const picture of strip.querySelectorAll("img")) URL.revokeObjectURL(picture.src);
  strip.hidden = files.length < 2;
  if (strip.hidden) return strip.replaceChildren();
  strip.replaceChildren(
    ...files.map((file) => {
      const button = document.createElement("button"), picture = document.createElement("img");
      button.type = "button";
      button.title = file.name;
      picture.src = URL.createObjectURL(file);
      picture.alt = file.name;
      button.append(picture);
      button.addEventListener("click", () => {
        mark(button);
        choose(file);
      });
      return button;
    }),
  );
  mark(strip.firstChild);
}

function mark(button) {
  for (const other of strip.children) other.ariaPressed = String(other === button);
}
