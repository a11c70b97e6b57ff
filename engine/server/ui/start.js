// What the page does first.

function show(tab) {
  document.body.dataset.tab = tab;
  for (const button of document.querySelectorAll("[data-show]"))
    button.setAttribute("aria-pressed", String(button.dataset.show === tab));
  look();
}

async function nameModel() {
  try {
    const [model] = (await (await ask("v1/models")).json()).data;
    $("model").textContent = model.id;
    $("model").title = `context of ${plural(model.max_model_len, "token")}`;
    $("model").hidden = false;
    document.title = `${model.id} · radixmesh`;
  } catch (error) {
    if (error.status === 401 || error.status === 403) $("keys").showModal();
  }
}

function startKeys() {
  for (const id of ["api-key", "admin-key"]) {
    $(id).value = keyOf(id);
    $(id).addEventListener("input", () => sessionStorage.setItem(id, $(id).value.trim()));
  }
  $("open-keys").addEventListener("click", () => $("keys").showModal());
  $("keys").addEventListener("close", () => {
    nameModel();
    look();
  });
}

function startTheme() {
  const root = document.documentElement;
  root.dataset.theme = sessionStorage.getItem("theme") ?? "";
  $("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    sessionStorage.setItem("theme", root.dataset.theme);
  });
}

document.addEventListener("pointerover", tipAt);
document.addEventListener("click", tipAt);
document.addEventListener("scroll", hideTip, true);
document.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());
document.addEventListener("visibilitychange", look);
addEventListener("resize", look);
for (const button of document.querySelectorAll("[data-show]"))
  button.addEventListener("click", () => show(button.dataset.show));
startTheme();
startKeys();
startChat();
nameModel();
look();
