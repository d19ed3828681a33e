// A photo that is chosen, dropped anywhere on the page or pasted is searched with at once.
const search = document.querySelector("form.photo");
const status = search.querySelector("[role=status]");
function say(words) { status.hidden = false; status.textContent = words; }
function searchWith(files) {
  if (files.length !== 1) return say("One photo at a time, please.");
  search.elements.photo.files = files;
  search.elements.url.value = "";
  search.requestSubmit();
}
function brings(event) { return event.dataTransfer.types.includes("Files"); }
search.elements.photo.addEventListener("change", (event) => event.target.files.length && searchWith(event.target.files));
addEventListener("paste", (event) => {
  if (!event.clipboardData.files.length) return;
  event.preventDefault();
  searchWith(event.clipboardData.files);
});
addEventListener("dragover", (event) => {
  if (!brings(event)) return;
  event.preventDefault();
  search.classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget || search.classList.remove("over"));
addEventListener("drop", (event) => {
  search.classList.remove("over");
  if (!brings(event)) return;
  event.preventDefault();
  searchWith(event.dataTransfer.files);
});
search.addEventListener("submit", () => say("Searching …"));
// The page as it was left, when one comes back to it.
addEventListener("pageshow", () => { search.elements.photo.value = ""; status.hidden = true; });
