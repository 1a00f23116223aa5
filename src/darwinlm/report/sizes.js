// The slider: figures, strip and table of the chosen size.
const { words, sizes } = JSON.parse(document.getElementById("sizes").textContent);
const slider = document.getElementById("size");
const rows = document.querySelectorAll("#blocks tr");
const strips = ["attention", "mlp"].map((kind) => document.querySelectorAll(`svg.${kind} g`));
const units = ["query heads", "MLP channels"];

function show(at) {
  const { text, blocks } = sizes[at];
  for (const [name, value] of Object.entries(text)) {
    for (const place of document.querySelectorAll(`[data-show="${name}"]`)) place.textContent = value;
  }
  blocks.forEach((kept, block) => {
    kept.forEach((word, column) => {
      const [share, said] = words[word];
      const cell = rows[block].cells[column + 1];
      cell.textContent = said;
      cell.classList.toggle("gone", share === 0);
      if (column === 0) return;
      const column_ = strips[column - 1][block];
      const bar = column_.lastElementChild;
      bar.setAttribute("width", 18 * share);
      bar.setAttribute("x", 10 - 9 * share);
      column_.firstElementChild.textContent = `block ${block}, ${units[column - 1]}: ${said}`;
    });
  });
  document.querySelectorAll("#all tr").forEach((row, place) => row.classList.toggle("final", place === at));
  slider.setAttribute("aria-valuetext", `${text.kept} of the block parameters, predicted KL ${text.kl}`);
}

slider.addEventListener("input", () => show(Number(slider.value)));
slider.disabled = false;
show(Number(slider.value));
