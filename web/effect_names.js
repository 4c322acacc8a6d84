// Choose Effect offers the effects of the collection that is connected to it.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const NONE = "none";
const catalogues = new Map(); // file name -> promise of its effects

function effectsOf(file) {
  if (!catalogues.has(file)) {
    const answer = api
      .fetchApi(`/collectionlora/catalogue?file=${encodeURIComponent(file)}`)
      .then((response) => (response.ok ? response.json() : []))
      .catch(() => []);
    catalogues.set(file, answer);
  }
  return catalogues.get(file);
}

// Upstream through reroutes to the node that names a file.
function fileOf(node) {
  let found = node.getInputNode(node.findInputSlot("collection"));
  for (let hops = 0; found && hops < 32; hops++) {
    const widget = found.widgets?.find((one) => one.name === "file");
    if (widget) return widget.value;
    found = found.getInputNode?.(0);
  }
  return null;
}

async function refresh(node) {
  const file = fileOf(node);
  if (!file) return;
  const effects = await effectsOf(file);
  if (!effects.length) return;
  const names = effects.map((effect) => effect.name);
  for (const widget of node.widgets ?? []) {
    if (widget.name === "effect") widget.options.values = names;
    if (widget.name === "then") widget.options.values = [NONE, ...names];
  }
  const effect = node.widgets?.find((widget) => widget.name === "effect");
  if (effect && !names.includes(effect.value)) effect.value = names[0];
}

app.registerExtension({
  name: "collectionlora.effectNames",
  nodeCreated(node) {
    if (node.comfyClass === "CollectionLoraLoad") {
      const file = node.widgets?.find((widget) => widget.name === "file");
      const changed = file?.callback;
      if (file) {
        file.callback = function (...args) {
          catalogues.delete(file.value);
          const result = changed?.apply(this, args);
          for (const other of app.graph?.nodes ?? []) {
            if (other.comfyClass === "CollectionLoraEffect") refresh(other);
          }
          return result;
        };
      }
    }
    if (node.comfyClass !== "CollectionLoraEffect") return;
    const connected = node.onConnectionsChange;
    node.onConnectionsChange = function (...args) {
      connected?.apply(this, args);
      setTimeout(() => refresh(this), 0);
    };
    setTimeout(() => refresh(node), 0);
  },
});
