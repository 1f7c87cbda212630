// Writes the head of its column into each cell of a table; site.css shows it on a phone, where rows are cards. Marks what
// is not to be broken across lines, and cells that hold nothing.
document$.subscribe(() => {
  for (const table of document.querySelectorAll(".md-typeset table:not([class])")) {
    const heads = [...table.querySelectorAll("thead th")].map((head) => head.textContent.trim());
    for (const row of table.querySelectorAll("tbody tr")) {
      [...row.cells].forEach((cell, index) => {
        if (heads[index]) cell.dataset.head = heads[index];
        const text = cell.textContent.trim();
        cell.classList.toggle("figure", /^[-+]?[\d.]+ ± [\d.]+$/.test(text));
        cell.classList.toggle("none", text === "-");
        // one flex item beside the head, whatever the cell holds
        const content = document.createElement("span");
        content.append(...cell.childNodes);
        if (content.textContent || content.children.length) cell.append(content);
      });
    }
  }
  for (const code of document.querySelectorAll(".md-typeset :not(pre) > code")) {
    code.classList.toggle("short", code.textContent.length <= 24);
  }
});
