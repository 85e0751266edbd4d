// What makes the pages pleasant. Every one of them works without it.
"use strict";

document.documentElement.classList.add("scripted");

// Times are written in UTC; the reader's own zone is nearer. The UTC time stays in the title.
function localTimes(root) {
  const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  for (const time of root.querySelectorAll("time[datetime]")) {
    time.textContent = format.format(new Date(time.dateTime));
  }
}

// What only some choices need: data-for="kind=commerce kind=application".
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

function start() {
  localTimes(document);
  conditional(document);
  document.querySelector("[data-focus]")?.focus();

  // The link of development mode signs in by itself.
  document.querySelector("form[data-send]")?.requestSubmit();

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const field = document.getElementById(button.dataset.copy);
      const said = document.querySelector("[data-said]");
      try {
        await navigator.clipboard.writeText(field.value);
        said.textContent = "Copied.";
      } catch {
        field.select();
        said.textContent = "The browser does not let us copy; it is selected, copy it with the keyboard.";
      }
    });
  }
  for (const field of document.querySelectorAll("[data-select]")) {
    field.addEventListener("focus", () => field.select());
  }

  // A secret is not left behind in the page's memory, nor left by accident.
  const secret = document.querySelector("[data-secret]");
  if (secret) {
    const acknowledged = secret.querySelector("[data-acknowledge]");
    window.addEventListener("beforeunload", (event) => {
      if (!acknowledged.checked) event.preventDefault();
    });
    window.addEventListener("pagehide", () => {
      for (const field of secret.querySelectorAll(".secret")) field.value = "";
    });
  }

  for (const field of document.querySelectorAll("[data-must-be]")) {
    const button = field.form.querySelector("button[type=submit]");
    // As the server compares: two ways to write the same letters are one (NFC).
    const plain = (text) => text.trim().normalize("NFC");
    const check = () => { button.disabled = plain(field.value) !== plain(field.dataset.mustBe); };
    field.addEventListener("input", check);
    check();
  }

  // A form is sent once, however often its button is pressed.
  for (const form of document.querySelectorAll("form[method=post]")) {
    form.addEventListener("submit", (event) => {
      if (form.dataset.sent) event.preventDefault();
      form.dataset.sent = "yes";
    });
  }
}

document.addEventListener("DOMContentLoaded", start);
document.addEventListener("htmx:afterSwap", (event) => localTimes(document.getElementById("results") ?? event.target));
// A page that comes back from the browser's memory can be sent again.
window.addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
});
