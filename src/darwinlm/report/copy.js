// A button that copies, beside every command; without scripts the page shows none.
for (const block of document.querySelectorAll(".copy")) {
  const button = document.createElement("button");
  const code = block.querySelector("code");
  button.type = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-live", "polite");
  button.addEventListener("click", async () => {
    let done = true;
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch { // some browsers give pages from a disk no clipboard
      getSelection().selectAllChildren(code);
      done = document.execCommand("copy");
    }
    button.textContent = done ? "Copied" : "Press Ctrl+C";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  block.append(button);
}
