// Nodes whose result is a text show it.
import { app } from "../../scripts/app.js";
import { element } from "./element.js";
import { offerNewFiles } from "./new_files.js";
import { ready, t } from "./words.js";

/** @typedef {any} Node ComfyUI's published types lack much of what its page gives a node. */

const SHOWING = new Set(["CollectionLoraInfo", "CollectionLoraSave", "CollectionLoraDistil"]);

app.registerExtension({
  name: "collectionlora.showText",
  init: () => ready, // before a workflow's nodes are made
  nodeCreated(/** @type {Node} */ node) {
    if (!SHOWING.has(node.comfyClass)) return;
    const area = element("textarea", "", { readonly: "", "aria-label": t("Result"), class: "comfy-multiline-input" });
    area.style.resize = "none";
    area.addEventListener("wheel", (event) => event.stopPropagation());
    const widget = node.addDOMWidget("result", "collectionlora.text", area, {
      serialize: false,
      getMinHeight: () => 60,
    });
    widget.serialize = false;
    const executed = node.onExecuted;
    node.onExecuted = function (/** @type {any} */ output, /** @type {any[]} */ ...rest) {
      executed?.call(this, output, ...rest);
      if (output?.text) area.value = output.text.join("\n");
      if (node.comfyClass === "CollectionLoraSave") offerNewFiles();
    };
  },
});
