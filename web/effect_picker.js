// Choose Effect: a gallery of the connected collection's effects. The node's two lists stay the truth; the
// gallery shows them and sets them, and is saved nowhere.
import { app } from "../../scripts/app.js";
import { wear } from "./element.js";
import { effectsOf, forget } from "./picker/catalogue.js";
import { Gallery } from "./picker/gallery.js";
import { ready, t } from "./words.js";

/** @typedef {any} Node ComfyUI's published types lack much of what its page gives a node. */

const NONE = "none";
const OUTSIDE = -10; // where links come from that enter a subgraph
const WIDTH = 340;
const HEIGHT = 260;

wear("./picker/picker.css");

/** Upstream, through reroutes and out of subgraphs, to the node that names a file. @param {Node} node */
function fileOf(node) {
  let found = before(node, node.findInputSlot("collection"));
  for (let hops = 0; found && hops < 32; hops++) {
    const widget = found.widgets?.find((/** @type {Node} */ one) => one.name === "file");
    if (widget) return widget.value;
    found = before(found, 0);
  }
  return null;
}

/**
 * The node at the other end of an input's link.
 * @param {Node} node @param {number} slot
 * @returns {Node | null}
 */
function before(node, slot) {
  const link = node.graph.getLink(node.inputs?.[slot]?.link); // getInputLink looks into subgraphs
  if (!link) return null;
  if (Number(link.origin_id) !== OUTSIDE) {
    const found = node.graph.getNodeById(link.origin_id);
    return found?.resolveSubgraphOutputLink?.(link.origin_slot)?.outputNode ?? found;
  }
  for (const holder of nodesOf(node.graph.rootGraph ?? node.graph)) {
    if (holder.subgraph === node.graph) return before(holder, link.origin_slot);
  }
  return null;
}

/** All nodes of a graph and of the subgraphs in it. @param {Node} graph @returns {Generator<Node>} */
function* nodesOf(graph) {
  for (const node of graph.nodes) {
    yield node;
    if (node.subgraph) yield* nodesOf(node.subgraph);
  }
}

/** @param {Node} node */
function widgetsOf(node) {
  const named = (/** @type {string} */ name) =>
    node.widgets?.find((/** @type {Node} */ widget) => widget.name === name);
  return { effect: named("effect"), then: named("then") };
}

/** @param {Node} node */
function choiceOf(node) {
  const { effect, then } = widgetsOf(node);
  return { first: effect?.value ?? "", second: !then?.value || then.value === NONE ? null : then.value };
}

/** @type {Map<unknown, Gallery>} */
const lately = new Map();

/**
 * Undo makes a node anew under its old id, and Vue nodes then go on showing the old one's element.
 * @param {Node} node
 */
function takePlace(node) {
  const gallery = node.collectionLoraGallery;
  const before = lately.get(node.id);
  if (before !== gallery && before?.root.isConnected && !gallery.root.isConnected) before.root.replaceWith(gallery.root);
  lately.set(node.id, gallery);
}

/** @param {Node} node */
async function refresh(node) {
  const gallery = node.collectionLoraGallery;
  takePlace(node);
  const file = fileOf(node);
  gallery.choose(choiceOf(node));
  if (!file) return gallery.complain(t("Connect Load Collection to see its effects."));
  let effects;
  try {
    effects = await effectsOf(file);
  } catch (error) {
    return gallery.complain(String(error instanceof Error ? error.message : error));
  }
  if (fileOf(node) !== file) return; // another file was chosen meanwhile
  const { effect, then } = widgetsOf(node);
  const names = effects.map((one) => one.name);
  if (effect) effect.options.values = names;
  if (then) then.options.values = [NONE, ...names];
  gallery.show(effects);
  gallery.choose(choiceOf(node));
}

/** @param {Node} node */
function addGallery(node) {
  const gallery = new Gallery(({ first, second }) => {
    const { effect, then } = widgetsOf(node);
    app.canvas.emitBeforeChange(); // one step of undo
    if (effect) effect.value = first;
    if (then) then.value = second ?? NONE;
    app.canvas.emitAfterChange();
    node.setDirtyCanvas?.(true, true);
  });
  node.collectionLoraGallery = gallery;
  const widget = node.addDOMWidget("gallery", "collectionlora.gallery", gallery.root, {
    serialize: false,
    getMinHeight: () => HEIGHT,
    hideOnZoom: false,
  });
  widget.serialize = false;
  for (const one of Object.values(widgetsOf(node))) {
    if (!one) continue;
    const called = one.callback;
    one.callback = function (/** @type {any[]} */ ...args) {
      const result = called?.apply(this, args);
      gallery.choose(choiceOf(node));
      return result;
    };
  }
  const connected = node.onConnectionsChange;
  node.onConnectionsChange = function (/** @type {any[]} */ ...args) {
    connected?.apply(this, args);
    setTimeout(() => refresh(node), 0);
  };
  const configured = node.onConfigure;
  node.onConfigure = function (/** @type {any[]} */ ...args) {
    configured?.apply(this, args);
    setTimeout(() => {
      fit(node); // a saved size may leave no room for the gallery
      refresh(node);
    }, 0);
  };
  const removed = node.onRemoved;
  node.onRemoved = function (/** @type {any[]} */ ...args) {
    gallery.retire();
    removed?.apply(this, args);
  };
  fit(node);
  setTimeout(() => refresh(node), 0);
}

/** @param {Node} node */
function fit(node) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width, WIDTH), Math.max(node.size[1], height)]);
}

/** @param {Node} node */
function watchFile(node) {
  const file = node.widgets?.find((/** @type {Node} */ widget) => widget.name === "file");
  if (!file) return;
  const called = file.callback;
  file.callback = function (/** @type {any[]} */ ...args) {
    const result = called?.apply(this, args);
    forget(file.value);
    for (const other of nodesOf(node.graph.rootGraph ?? node.graph)) {
      if (other.collectionLoraGallery) refresh(other);
    }
    return result;
  };
}

app.registerExtension({
  name: "collectionlora.effectPicker",
  init: () => ready, // before a workflow's nodes are made
  nodeCreated(/** @type {Node} */ node) {
    if (node.comfyClass === "CollectionLoraLoad") watchFile(node);
    if (node.comfyClass === "CollectionLoraEffect") addGallery(node);
  },
});
