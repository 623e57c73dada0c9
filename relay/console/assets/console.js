// Updates a page: replaces its live parts by those that the server sends. Without scripts a page shows the state at its loading.
"use strict";
(() => {
  const feed = document.getElementById("feed");
  const connection = document.getElementById("connection");
  if (!feed || !window.EventSource) return;

  const LATER_MS = 10000; // the time after which a refused stream is requested again
  let source = null;
  let later = 0;

  const say = (state, text) => {
    if (connection.dataset.state === state && connection.title === text) return;
    connection.dataset.state = state;
    connection.title = text;
    connection.textContent = { live: "Live", lost: "Reconnecting…", unavailable: "Redis is unavailable", over: "Signed out" }[state];
  };

  // A part with the pointer on a control is not replaced, so that the control does not move.
  const isAimedAt = (part) => part.querySelector("a:hover, button:hover, a:active, button:active") !== null;

  const swap = (html) => {
    const template = document.createElement("template");
    template.innerHTML = html; // escaped by the server; scripts in it would not run, and the policy forbids them
    for (const fresh of template.content.querySelectorAll("[data-live]")) {
      const stale = document.getElementById(fresh.id);
      if (!stale || isAimedAt(stale)) continue;
      const key = stale.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
      stale.replaceWith(fresh);
      if (key === undefined) continue;
      for (const control of fresh.querySelectorAll("[data-key]")) {
        if (control.dataset.key === key) control.focus({ preventScroll: true });
      }
    }
  };

  const close = () => {
    clearTimeout(later);
    if (source) source.close();
    source = null;
  };

  const open = () => {
    close();
    source = new EventSource(feed.dataset.from);
    source.addEventListener("page", (event) => { swap(event.data); say("live", ""); });
    source.addEventListener("unavailable", (event) => say("unavailable", event.data));
    source.addEventListener("over", () => { close(); say("over", "The session is over: sign in again."); });
    source.addEventListener("error", () => {
      if (!source) return;
      say("lost", "");
      if (source.readyState === EventSource.CLOSED) later = setTimeout(open, LATER_MS);
    });
  };

  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  window.addEventListener("pagehide", close);
  if (!document.hidden) open();
})();
