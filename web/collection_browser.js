// A sidebar tab with all collection files: what is in them, other titles and pictures, a copy, a download.
import { app } from "../../scripts/app.js";
import { Browser } from "./browser/browser.js";
import { ready, t } from "./words.js";

const style = document.createElement("link");
style.rel = "stylesheet";
style.href = new URL("./browser/browser.css", import.meta.url).href;
document.head.append(style);

app.registerExtension({
  name: "collectionlora.collectionBrowser",
  async setup() {
    await ready;
    app.extensionManager.registerSidebarTab({
      id: "collectionlora.collections",
      icon: "pi pi-th-large",
      title: t("Effects"),
      tooltip: t("Collections of effects: look into them, rename, export"),
      type: "custom",
      render: (/** @type {HTMLElement} */ place) => place.replaceChildren(new Browser().root),
    });
  },
});
