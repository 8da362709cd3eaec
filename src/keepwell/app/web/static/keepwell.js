// Re-reads the page's own live part every two seconds, while somebody looks at it.
const live = document.querySelector("main[data-live]");
if (live) setInterval(async () => {
  if (document.hidden || live.querySelector("details[open], :focus")) return;
  try {
    const answer = await fetch(location.href, { headers: { "x-keepwell-part": "main" } });
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
    if (fresh) live.innerHTML = fresh.innerHTML;
  } catch { /* the server restarts; the next round finds it */ }
}, 2000);
