// Choose Effect: a gallery of the connected collection's effects. The node's two lists stay the truth; the
// gallery shows them and sets them, and is saved nowhere.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { wear } from "./element.js";
import { whileInGraph } from "./in_graph.js";
import { changed, effectsOf, onChanged } from "./picker/catalogue.js";
import { Gallery } from "./picker/gallery.js";
import { drawGallery } from "./picker/own.js";
import { fileOf, idInPrompt, nodesOf, noteOpened, offerChoices, widgetOf } from "./picker/upstream.js";
import { ready, t } from "./words.js";

/** @typedef {import("./picker/upstream.js").Node} Node */

const NONE = "none";
const WIDTH = 340;
const HEIGHT = 260;

wear("./picker/picker.css");

/** How each gallery is looked at, until the page is left: undo makes a node and its gallery anew. @type {Map<string, import("./picker/gallery.js").View>} */
const views = new Map();

/** @param {Node} node */
function viewOf(node) {
  const key = `${node.graph.id}:${node.id}`;
  const view = views.get(key) ?? {};
  views.set(key, view);
  return view;
}

/** @param {Node} node */
function choiceOf(node) {
  const [effect, then] = ["effect", "then"].map((name) => widgetOf(node, name));
  const second = !then?.value || then.value === NONE ? null : then.value;
  return { first: effect?.value ?? "", second, linked: !effect, thenLinked: !then };
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
  const { file, why } = fileOf(node);
  if (file !== gallery.file) gallery.tell(""); // what was said of another one
  gallery.file = file;
  gallery.choose(choiceOf(node));
  if (!file) return gallery.complain(why);
  const isStill = () => node.graph && fileOf(node).file === file; // else another file was chosen meanwhile
  try {
    const effects = await effectsOf(file);
    if (isStill()) offer(node, effects);
  } catch (error) {
    if (isStill()) gallery.complain(messageOf(error));
  }
}

/** @param {unknown} error */
const messageOf = (error) => String(error instanceof Error ? error.message : error);

/** @param {Node} node @param {import("./picker/catalogue.js").Effect[]} effects */
function offer(node, effects) {
  const names = effects.map((one) => one.name);
  for (const [name, values] of Object.entries({ effect: names, then: [NONE, ...names] })) {
    offerChoices(node, name, values);
  }
  node.collectionLoraGallery.show(effects);
  node.collectionLoraGallery.choose(choiceOf(node));
}

/** Follow what was changed elsewhere: at a subgraph's node, by undo. */
function follow() {
  for (const node of nodesOf(app.graph.rootGraph)) {
    const gallery = node.collectionLoraGallery;
    if (gallery && fileOf(node).file !== gallery.file) refresh(node);
    gallery?.choose(choiceOf(node));
  }
}

/**
 * Draw a node's gallery on the user's picture, and say so there: in minutes, in which undo or another tab may have
 * made both anew.
 * @param {Node} node @param {File} picture
 */
async function draw(node, picture) {
  const { id, graph } = node;
  const { file } = fileOf(node);
  const gallery = () => {
    const all = [...nodesOf(app.graph.rootGraph)];
    const now = all.find((one) => one.id === id && one.graph.id === graph.id) ?? node;
    return now.collectionLoraGallery ?? node.collectionLoraGallery;
  };
  try {
    await drawGallery(idInPrompt(node), picture, (text) => gallery().tell(text));
    gallery().tell(t("Drawn on your picture."));
    gallery().showMine();
  } catch (error) {
    gallery().tell(messageOf(error));
  }
  changed(file); // some pictures may be there after an error too
}

/** @param {Node} node */
function addGallery(node) {
  const gallery = new Gallery({
    onChoice({ first, second }) {
      app.canvas.emitBeforeChange(); // one step of undo
      for (const [name, value] of Object.entries({ effect: first, then: second ?? NONE })) {
        const widget = widgetOf(node, name);
        if (widget) widget.value = value;
      }
      app.canvas.emitAfterChange();
      gallery.choose(choiceOf(node)); // what a link brings stays
      node.setDirtyCanvas?.(true, true);
    },
    onPicture: (picture) => draw(node, picture),
  });
  node.collectionLoraGallery = gallery;
  const widget = node.addDOMWidget("gallery", "collectionlora.gallery", gallery.root, {
    serialize: false,
    getMinHeight: () => HEIGHT,
    hideOnZoom: false,
  });
  widget.serialize = false;
  for (const one of node.widgets) {
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
  whileInGraph(node, () => {
    gallery.attend(viewOf(node));
    setTimeout(() => refresh(node), 0);
  }, () => gallery.retire());
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
  const connected = node.onConnectionsChange;
  node.onConnectionsChange = function (/** @type {any[]} */ ...args) {
    connected?.apply(this, args);
    setTimeout(follow, 0); // the file may come by a link now
  };
}

/** Read effects anew. @param {(node: Node) => boolean} [of] the galleries to do it for */
function refreshAll(of = () => true) {
  for (const node of nodesOf(app.graph.rootGraph)) if (node.collectionLoraGallery && of(node)) refresh(node);
}

onChanged((file) => refreshAll((node) => fileOf(node).file === file));

app.registerExtension({
  name: "collectionlora.effectPicker",
  init: () => ready, // before a workflow's nodes are made
  setup() {
    api.addEventListener(/** @type {any} */ ("graphChanged"), follow);
    api.addEventListener("reconnected", () => refreshAll()); // what was asked meanwhile has failed
    app.canvas.canvas.addEventListener("subgraph-opened", (/** @type {any} */ { detail }) => {
      noteOpened(detail.subgraph, detail.fromNode);
      follow();
    });
    // a Contact Sheet of any graph
    api.addEventListener(/** @type {any} */ ("collectionlora.gallery"), (/** @type {any} */ { detail }) => {
      if (detail.done === detail.total) changed(detail.file);
    });
  },
  refreshComboInNodes: () => refreshAll(), // the page has just offered what the server knows: the built-in effects
  nodeCreated(/** @type {Node} */ node) {
    if (node.comfyClass === "CollectionLoraLoad") watchFile(node);
    if (node.comfyClass === "CollectionLoraEffect") addGallery(node);
  },
});
