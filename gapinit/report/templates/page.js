"use strict";
// Everything here is an addition: without JavaScript the page reads the same, in file order.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (head.classList.contains("plain")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const key = (row) => {
        const cell = row.cells[column];
        const value = cell.dataset.value ?? cell.textContent.trim();
        return value === "" ? null : isNaN(value) ? value : Number(value);
      };
      const rows = [...body.rows].sort((left, right) => {
        const a = key(left), b = key(right);
        // Empty entries stay at the end in both orders.
        if (a === null || b === null) return (a === null) - (b === null);
        const order = typeof a === "number" && typeof b === "number"
          ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
        return ascending ? order : -order;
      });
      body.append(...rows);
    });
  });
}
const browser = document.querySelector(".browser");
if (browser && browser.children.length > 1) {
  const labels = JSON.parse(browser.dataset.labels);
  const scores = (article) => article.dataset.scores.split(" ").map(Number);
  const orders = [
    ["where methods differ most", (article) => -Number(article.dataset.spread)],
    ["image number", (article) => Number(article.dataset.image)],
  ];
  labels.forEach((label, index) => {
    orders.push([`best first: ${label}`, (article) => -scores(article)[index]]);
    orders.push([`worst first: ${label}`, (article) => scores(article)[index]]);
  });
  const choice = document.createElement("select");
  choice.id = "order";
  orders.forEach(([name], index) => choice.append(new Option(name, index)));
  const label = document.createElement("label");
  label.append("Order: ", choice);
  const line = document.createElement("p");
  line.className = "sorter";
  line.append(label);
  browser.before(line);
  choice.addEventListener("change", () => {
    const key = orders[choice.value][1];
    browser.append(...[...browser.children].sort((a, b) => key(a) - key(b)));
  });
}
// A link to a run opens what it leads into, in browsers that do not do so themselves.
const reveal = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const closed = target && target.closest("details:not([open])");
  if (closed) { closed.open = true; target.scrollIntoView(); }
};
addEventListener("hashchange", reveal);
reveal();
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not(.run)")) part.open = true;
});
