// A sidebar tab with all collection files: what is in them, other titles and pictures, a copy, a download.
import { app } from "../../scripts/app.js";
import { Browser } from "./browser/browser.js";
import { wear } from "./element.js";
import { addTab } from "./tab.js";
import { ready, t } from "./words.js";

wear("./browser/browser.css");

app.registerExtension({
  name: "collectionlora.collectionBrowser",
  async setup() {
    await ready;
    const tooltip = t("Collections of effects: look into them, rename, export");
    const tab = { id: "collectionlora.collections", icon: "pi pi-th-large", title: t("Effects"), tooltip };
    addTab(tab, () => new Browser());
  },
});
