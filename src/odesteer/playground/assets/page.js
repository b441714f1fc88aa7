// A token that is pointed at, touched or reached by keys lights up, with its path in each figure.
// One token of a text is a stop of the Tab key; the arrow keys go on from it.
(() => {
  let tip;
  const choose = (token) => {
    document.querySelectorAll(".tok.on, .pg-figures .way.on").forEach(
      (other) => other.classList.remove("on"));
    if (!tip) {
      tip = document.createElement("div");
      tip.id = "pg-tip";
      tip.setAttribute("role", "status");
      document.querySelector(".gradio-container").append(tip);
    }
    if (!token) { tip.style.display = "none"; return; }
    token.classList.add("on");
    if (token.closest(".pg-text").dataset.side === "1")
      document.querySelectorAll(`.pg-figures .way[data-way="${token.dataset.i}"]`).forEach(
        (way) => { way.classList.add("on"); way.parentNode.append(way); });
    tip.textContent = token.dataset.tip;
    tip.style.display = "block";
    const box = token.getBoundingClientRect(), own = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(box.left, innerWidth - own.width - 4)) + "px";
    tip.style.top = (box.top > own.height + 12 ? box.top - own.height - 6 : box.bottom + 6) + "px";
  };
  const of = (event) => event.target.closest ? event.target.closest(".tok") : null;
  for (const kind of ["mouseover", "focusin", "click"])
    document.addEventListener(kind, (event) => { if (of(event)) choose(of(event)); });
  document.addEventListener("mouseout", (event) => {
    if (of(event) && tip) tip.style.display = "none"; });
  document.addEventListener("focusout", (event) => { if (of(event)) choose(null); });
  document.addEventListener("scroll", () => { if (tip) tip.style.display = "none"; }, true);
  document.addEventListener("keydown", (event) => {
    const token = of(event);
    if (!token) return;
    if (event.key === "Escape") { token.blur(); choose(null); return; }
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    const next = step && (step > 0 ? token.nextElementSibling : token.previousElementSibling);
    if (next && next.classList.contains("tok")) {
      event.preventDefault();
      token.tabIndex = -1; next.tabIndex = 0; next.focus();
    }
  });
})();
