// Enhances the pages. All of them work without it.
"use strict";

document.documentElement.classList.add("scripted");

// The page has times in UTC. Recent ones are shown relative to now, others as dates in the reader's time zone; the title has
// the exact time in both zones.
function localTimes(root) {
  const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
  const relative = new Intl.RelativeTimeFormat(undefined, { numeric: "auto", style: "short" });
  const units = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
  for (const time of root.querySelectorAll("time[datetime]:not([data-utc])")) {
    const at = new Date(time.dateTime);
    const seconds = Math.round((at - Date.now()) / 1000);
    const [unit, size] = units.find(([, size]) => Math.abs(seconds) >= size) ?? units[3];
    const isRecent = Math.abs(seconds) < 7 * 86400;
    time.dataset.utc = time.textContent;
    time.title = `${exact.format(at)} (${time.dataset.utc})`;
    time.textContent = isRecent ? relative.format(Math.trunc(seconds / size), unit) : day.format(at);
  }
}

// Shows fields that only some choices need: data-for="kind=commerce kind=application".
function conditional(root) {
  for (const part of root.querySelectorAll("[data-for]")) {
    const form = part.closest("form");
    const show = () => {
      const data = new FormData(form);
      part.hidden = !part.dataset.for.split(" ").some((rule) => {
        const [name, value] = rule.split("=");
        return data.get(name) === value;
      });
    };
    form.addEventListener("change", show);
    show();
  }
}

// Adds what a part of the page needs.
function enhance(root) {
  localTimes(root);
  conditional(root);

  for (const button of root.querySelectorAll("[data-copy-text]")) {
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.dataset.copyText);
      button.textContent = "Copied";
    });
  }
  for (const button of root.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const field = document.getElementById(button.dataset.copy);
      const status = document.querySelector("[data-copy-status]");
      try {
        await navigator.clipboard.writeText(field.value);
        status.textContent = "Copied.";
      } catch {
        field.select();
        status.textContent = "The browser does not allow copying. The text is selected: copy it with the keyboard.";
      }
    });
  }
  for (const field of root.querySelectorAll("[data-select]")) {
    field.addEventListener("focus", () => field.select());
  }

  // The key does not stay in a page that the browser keeps, and the user cannot leave the page by accident.
  const secret = root.querySelector("[data-secret]");
  if (secret) {
    const acknowledged = secret.querySelector("[data-acknowledge]");
    window.addEventListener("beforeunload", (event) => {
      if (!acknowledged.checked) event.preventDefault();
    });
    window.addEventListener("pagehide", () => {
      for (const field of secret.querySelectorAll(".secret")) {
        field.value = "";
        field.removeAttribute("value");
        field.textContent = "";
      }
      acknowledged.checked = true; // a page that comes back is loaded anew, without the question
    });
  }

  for (const field of root.querySelectorAll("[data-must-be]")) {
    const button = field.form.querySelector("button[type=submit]");
    // As the server compares: in Unicode normalization form C.
    const plain = (text) => text.trim().normalize("NFC");
    const check = () => { button.disabled = plain(field.value) !== plain(field.dataset.mustBe); };
    field.addEventListener("input", check);
    check();
  }

  for (const form of root.querySelectorAll("form[method=post]")) {
    form.addEventListener("submit", (event) => {
      // A form is sent once, even if its button is pressed again.
      if (form.dataset.sent || form.hasAttribute("data-in-place")) event.preventDefault();
      if (form.dataset.sent) return;
      form.dataset.sent = "yes";
      if (form.hasAttribute("data-in-place")) sendInPlace(form);
    });
  }
}

// Shows the response to a form in place of the page. A response that shows a key gets no entry in the history this way:
// Back from a later page leads to the form, and not to the browser's error for a form that would be sent again.
async function sendInPlace(form) {
  let response, page;
  try {
    response = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)) });
    page = new DOMParser().parseFromString(await response.text(), "text/html");
  } catch {
    keepForm(form, "No response arrived. Check the connection and try again: this form creates only one key.");
    return;
  }
  if (response.redirected) {
    location.assign(response.url);
    return;
  }
  const main = page.querySelector("main");
  if (!main?.querySelector("[data-secret], form[data-in-place]")) {
    // An error of the server or of a proxy: the input is not lost.
    const text = [...(main?.querySelectorAll("p:not(:has(a))") ?? [])].map((part) => part.textContent.trim());
    keepForm(form, text.join(" ") || `The server responded with status ${response.status}. Try again.`);
    return;
  }
  document.title = page.title;
  document.querySelector("main").replaceWith(main);
  enhance(main);
  window.scrollTo(0, 0);
  (main.querySelector("[data-focus]") ?? main).focus();
}

// Shows why a form was not accepted, and lets it be sent again.
function keepForm(form, text) {
  form.querySelector(":scope > [data-failed]")?.remove();
  const notice = document.createElement("div");
  notice.className = "notice bad";
  notice.role = "alert";
  notice.tabIndex = -1;
  notice.dataset.failed = "";
  notice.textContent = text;
  form.prepend(notice);
  notice.focus();
  delete form.dataset.sent;
}

function start() {
  enhance(document);
  document.querySelector("[data-focus]")?.focus();

  // The sign-in link of development mode sends its form by itself.
  document.querySelector("form[data-send]")?.requestSubmit();

  // A notice is about the request before this page, and not about a reload or a page that comes back.
  const here = new URL(location);
  if (here.searchParams.has("done")) {
    here.searchParams.delete("done");
    history.replaceState(history.state, "", here);
  }
}

document.addEventListener("DOMContentLoaded", start);
document.addEventListener("htmx:afterSwap", (event) => {
  localTimes(document.getElementById("results") ?? event.target);
  document.querySelector("main > .notice.good")?.remove();
});
// The forms of a page from the back/forward cache can be sent again. A page that showed a key is loaded anew.
window.addEventListener("pageshow", (event) => {
  if (event.persisted && document.querySelector("[data-secret]")) location.reload();
  for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
});
