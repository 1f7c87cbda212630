// Writes the head of its column into each cell of a table; site.css shows it on a phone, where rows are cards.
document$.subscribe(() => {
  for (const table of document.querySelectorAll(".md-typeset table:not([class])")) {
    const heads = [...table.querySelectorAll("thead th")].map((head) => head.textContent.trim());
    for (const row of table.querySelectorAll("tbody tr")) {
      [...row.cells].forEach((cell, index) => {
        if (heads[index]) cell.dataset.head = heads[index];
        // one flex item beside the head, whatever the cell holds
        const content = document.createElement("span");
        content.append(...cell.childNodes);
        if (content.textContent || content.children.length) cell.append(content);
      });
    }
  }
});
