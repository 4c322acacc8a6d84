// A sidebar tab that shows the latest distillation, live and after a reload.
import { app } from "../../scripts/app.js";
import { wear } from "./element.js";
import { Panel } from "./panel/panel.js";
import { addTab } from "./tab.js";
import { ready, t } from "./words.js";

wear("./panel/panel.css");

app.registerExtension({
  name: "collectionlora.distillationPanel",
  async setup() {
    await ready;
    const tooltip = t("Distillation: losses, previews, time left");
    const tab = { id: "collectionlora.distillation", icon: "pi pi-chart-line", title: t("Distil"), tooltip };
    addTab(tab, () => new Panel());
  },
});
