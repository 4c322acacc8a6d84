// A sidebar tab that shows the latest distillation, live and after a reload.
import { app } from "../../scripts/app.js";
import { Panel } from "./panel/panel.js";
import { ready, t } from "./words.js";

const style = document.createElement("link");
style.rel = "stylesheet";
style.href = new URL("./panel/panel.css", import.meta.url).href;
document.head.append(style);

/** @type {Panel | null} */
let panel = null;

app.registerExtension({
  name: "collectionlora.distillationPanel",
  async setup() {
    await ready;
    app.extensionManager.registerSidebarTab({
      id: "collectionlora.distillation",
      icon: "pi pi-chart-line",
      title: t("Distil"),
      tooltip: t("Distillation: losses, previews, time left"),
      type: "custom",
      render: (/** @type {HTMLElement} */ place) => {
        panel?.remove();
        panel = new Panel();
        place.replaceChildren(panel.root);
      },
      destroy: () => {
        panel?.remove();
        panel = null;
      },
    });
  },
});
