// Nodes whose result is a text show it.
import { app } from "../../scripts/app.js";
import { shareCanvas } from "./canvas.js";
import { element } from "./element.js";
import { nodesOf } from "./picker/upstream.js";
import { ready, t } from "./words.js";

/** @typedef {any} Node ComfyUI's published types lack much of what its page gives a node. */

const SHOWING = new Set(["CollectionLoraInfo", "CollectionLoraSave", "CollectionLoraDistil"]);

/** What the page calls a node's results by. @param {Node} node */
function resultKey(node) {
  const { graph } = node;
  return graph === graph.rootGraph ? String(node.id) : `${graph.id}:${node.id}`;
}

/** @param {Node} node @param {any} output */
function show(node, output) {
  if (output?.text && node.collectionLoraText) node.collectionLoraText.value = output.text.join("\n");
}

app.registerExtension({
  name: "collectionlora.showText",
  init: () => ready, // before a workflow's nodes are made
  nodeCreated(/** @type {Node} */ node) {
    if (!SHOWING.has(node.comfyClass)) return;
    const area = element("textarea", "", { readonly: "", "aria-label": t("Result"), class: "comfy-multiline-input" });
    area.style.resize = "none";
    shareCanvas(area);
    node.collectionLoraText = area;
    const widget = node.addDOMWidget("result", "collectionlora.text", area, {
      serialize: false,
      getMinHeight: () => 60,
    });
    widget.serialize = false;
    const executed = node.onExecuted;
    node.onExecuted = function (/** @type {any} */ output, /** @type {any[]} */ ...rest) {
      executed?.call(this, output, ...rest);
      show(node, output);
    };
  },
  // Of a workflow that is shown again: its nodes are new ones, and may have run while another one was shown.
  onNodeOutputsUpdated(/** @type {Record<string, any>} */ outputs) {
    for (const node of nodesOf(app.graph.rootGraph)) show(node, outputs[resultKey(node)]);
  },
});
