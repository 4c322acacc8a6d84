// Choose Effect: a gallery of the connected collection's effects. The node's two lists stay the truth; the
// gallery shows them and sets them, and is saved nowhere.
import { app } from "../../scripts/app.js";
import { wear } from "./element.js";
import { changed, effectsOf, onChanged } from "./picker/catalogue.js";
import { Gallery } from "./picker/gallery.js";
import { fileOf, nodesOf } from "./picker/upstream.js";
import { ready, t } from "./words.js";

/** @typedef {import("./picker/upstream.js").Node} Node */

const NONE = "none";
const WIDTH = 340;
const HEIGHT = 260;

wear("./picker/picker.css");

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

/**
 * Undo makes a node anew under its old id, and Vue nodes then go on showing the old one's element.
 * @param {Node} node
 */
function takePlace(node) {
  const { root } = node.collectionLoraGallery;
  root.dataset.node = node.id;
  if (root.isConnected) return;
  for (const old of document.querySelectorAll(".cl-retired")) {
    if (old instanceof HTMLElement && old.dataset.node === root.dataset.node) old.replaceWith(root);
  }
}

/** @param {Node} node */
async function refresh(node) {
  if (!node.graph) return; // a copy on its way, or removed meanwhile
  const gallery = node.collectionLoraGallery;
  takePlace(node);
  const file = fileOf(node);
  gallery.choose(choiceOf(node));
  if (!file) return gallery.complain(t("Connect Load Collection to see its effects."));
  let effects;
  try {
    effects = await effectsOf(file);
  } catch (error) {
    if (!node.graph || fileOf(node) !== file) return;
    return gallery.complain(String(error instanceof Error ? error.message : error));
  }
  if (!node.graph || fileOf(node) !== file) return; // another file was chosen meanwhile
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
  const added = node.onAdded;
  node.onAdded = function (/** @type {any[]} */ ...args) {
    added?.apply(this, args);
    gallery.attend();
    setTimeout(() => refresh(node), 0);
  };
  const removed = node.onRemoved;
  node.onRemoved = function (/** @type {any[]} */ ...args) {
    gallery.retire();
    removed?.apply(this, args);
  };
  fit(node);
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
    changed(file.value);
    return result;
  };
}

onChanged((file) => {
  for (const node of nodesOf(app.graph.rootGraph)) {
    if (node.collectionLoraGallery && fileOf(node) === file) refresh(node);
  }
});

app.registerExtension({
  name: "collectionlora.effectPicker",
  init: () => ready, // before a workflow's nodes are made
  nodeCreated(/** @type {Node} */ node) {
    if (node.comfyClass === "CollectionLoraLoad") watchFile(node);
    if (node.comfyClass === "CollectionLoraEffect") addGallery(node);
  },
});
