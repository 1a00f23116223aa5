// The slider: figures, strip and table of the chosen size, and its row among all sizes.
const slider = document.getElementById("size");
const sizes = document.querySelectorAll(".size");
const rows = document.querySelectorAll("#all tr");

function show(at) {
  const open = document.querySelector(".size:not([hidden]) details").open;
  sizes.forEach((size, place) => { size.hidden = place !== at; });
  rows.forEach((row, place) => row.classList.toggle("final", place === at));
  sizes[at].querySelector("details").open = open;
  slider.setAttribute("aria-valuetext", sizes[at].dataset.said);
}

slider.addEventListener("input", () => show(Number(slider.value)));
slider.disabled = false;
show(Number(slider.value));
