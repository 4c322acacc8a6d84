// The latest distillation, live and after a reload: in a tab of the sidebar, and on the node whose run it is.
import { app } from "../../scripts/app.js";
import { shareCanvas } from "./canvas.js";
import { wear } from "./element.js";
import { whileInGraph } from "./in_graph.js";
import { Panel } from "./panel/panel.js";
import { idInPrompt } from "./picker/upstream.js";
import { addTab } from "./tab.js";
import { ready, t } from "./words.js";

/** @typedef {any} Node ComfyUI's published types lack much of what its page gives a node. */

const HEIGHT = 240;

wear("./panel/panel.css");

/** @param {Node} node */
function addPanel(node) {
  const panel = new Panel(
    () => (node.graph ? idInPrompt(node) : "none yet"),
    () => String(node.graph?.rootGraph?.id ?? ""),
  );
  panel.root.classList.add("cl-on-node");
  shareCanvas(panel.root);
  const widget = node.addDOMWidget("panel", "collectionlora.panel", panel.root, {
    serialize: false,
    getMinHeight: () => HEIGHT,
    hideOnZoom: false,
  });
  widget.serialize = false;
  const configured = node.onConfigure;
  node.onConfigure = function (/** @type {any[]} */ ...args) {
    configured?.apply(this, args);
    setTimeout(() => fit(node), 0); // a saved size may leave no room for the panel
  };
  whileInGraph(node, () => {
    panel.attend();
    setTimeout(() => panel.load(), 0); // its id in a prompt is known then
  }, () => panel.remove());
  setTimeout(() => fit(node), 0);
}

/** @param {Node} node */
function fit(node) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
}

app.registerExtension({
  name: "collectionlora.distillationPanel",
  init: () => ready, // before a workflow's nodes are made
  nodeCreated(/** @type {Node} */ node) {
    if (node.comfyClass === "CollectionLoraDistil") addPanel(node);
  },
  async setup() {
    await ready;
    const tooltip = t("Distillation: losses, previews, time left");
    const tab = { id: "collectionlora.distillation", icon: "pi pi-chart-line", title: t("Distil"), tooltip };
    addTab(tab, () => {
      const panel = new Panel();
      panel.attend();
      panel.load();
      return panel;
    });
  },
});
