// What a node gets: through reroutes, into and out of subgraphs.
import { t } from "../words.js";

/** @typedef {any} Node ComfyUI's published types lack much of what its page gives a node. */

const OUTSIDE = -10; // where links come from that enter a subgraph

/** The subgraph node through which each subgraph was opened last. @type {WeakMap<Node, Node>} */
const opened = new WeakMap();

/** Note through which node a subgraph is looked into: there may be several. @param {Node} subgraph @param {Node} holder */
export function noteOpened(subgraph, holder) {
  opened.set(subgraph, holder);
}

/** All nodes of a graph and of the subgraphs in it. @param {Node} graph @returns {Generator<Node>} */
export function* nodesOf(graph) {
  for (const node of graph.nodes) {
    yield node;
    if (node.subgraph) yield* nodesOf(node.subgraph);
  }
}

/** The subgraph nodes that stand for a graph, if it is a subgraph. @param {Node} graph @returns {Node[]} */
function holdersOf(graph) {
  return [...nodesOf(graph.rootGraph ?? graph)].filter((node) => node.subgraph === graph);
}

/** The one of them that it is looked into through. @param {Node} graph @returns {Node | null} */
function holderOf(graph) {
  const holders = holdersOf(graph);
  return holders.find((node) => node === opened.get(graph)) ?? holders[0] ?? null;
}

/** What a node is called in a prompt. @param {Node} node @returns {string} */
export function idInPrompt(node) {
  const holder = holderOf(node.graph);
  return holder ? `${idInPrompt(holder)}:${node.id}` : String(node.id);
}

/**
 * The file whose effects a Choose Effect node offers, or why that cannot be known here.
 * @param {Node} node
 * @returns {{file: string, why: string}}
 */
export function fileOf(node) {
  const first = node.findInputSlot("collection");
  const { type } = node.inputs[first];
  let found = before(node, first);
  for (let hops = 0; found && hops < 32; hops++) {
    if (found.comfyClass === "CollectionLoraLoad") {
      const widget = widgetOf(found, "file");
      if (widget) return { file: String(widget.value), why: "" };
      return { file: "", why: t("Load Collection gets its file by a link: choose the file in the node to see its effects.") };
    }
    if (found.comfyClass === "CollectionLoraDistil") {
      return { file: "", why: t("Effects that are distilled in this graph can be seen once they are saved: use Load Collection.") };
    }
    const slot = slotOf(found, type);
    if (slot === null) {
      return { file: "", why: t("Which collection comes through {node} is known only when it runs.", { node: found.title }) };
    }
    found = before(found, slot);
  }
  return { file: "", why: t("Connect Load Collection to see its effects.") };
}

/**
 * The input that a node passes on, where it is known before it runs: a switch's by its widget, else the only one.
 * @param {Node} node @param {string} type of what is passed on
 * @returns {number | null}
 */
function slotOf(node, type) {
  if (node.comfyClass === "ComfySwitchNode") {
    const side = widgetOf(node, "switch");
    return side ? node.findInputSlot(side.value ? "on_true" : "on_false") : null;
  }
  /** @param {Node} input */
  const fits = (input) => (input.link ?? null) !== null && !input.widget && [type, "*"].includes(input.type);
  const slots = [...(node.inputs ?? []).keys()].filter((slot) => fits(node.inputs[slot]));
  return slots.length > 1 ? null : (slots[0] ?? 0);
}

/** The widget that decides an input of a node. @param {Node} node @param {string} name */
export function widgetOf(node, name) {
  return widgetAt(node, node.findInputSlot(name), name);
}

/**
 * Let all that show an input's choices offer these: the node's own widget, those of subgraph nodes, a Primitive's.
 * @param {Node} node @param {string} name @param {string[]} values
 */
export function offerChoices(node, name, values) {
  for (const widget of shownBy(node, node.findInputSlot(name), name)) {
    if (widget?.options) widget.options.values = values;
  }
}

/** @param {Node} node @param {number} slot @param {string} name @returns {Generator<Node | undefined>} */
function* shownBy(node, slot, name) {
  yield ownWidget(node, slot, name);
  const link = node.graph?.getLink(node.inputs?.[slot]?.link);
  if (link && Number(link.origin_id) === OUTSIDE) {
    for (const holder of holdersOf(node.graph)) yield* shownBy(holder, link.origin_slot, name);
  } else if (link) {
    const source = node.graph.getNodeById(link.origin_id);
    if (source?.type === "PrimitiveNode") yield source.widgets?.[0];
  }
}

/** @param {Node} node @param {number} slot @param {string} name @returns {Node | undefined} */
function ownWidget(node, slot, name) {
  const input = node.inputs?.[slot];
  return (input && node.getWidgetFromSlot?.(input)) ?? node.widgets?.find((/** @type {Node} */ one) => one.name === name);
}

/**
 * The node's own widget, or the one that a subgraph node shows in its place; none where a link brings the value.
 * @param {Node} node @param {number} slot @param {string} name
 * @returns {Node | null}
 */
function widgetAt(node, slot, name) {
  const link = node.graph?.getLink(node.inputs?.[slot]?.link);
  if (!link) return ownWidget(node, slot, name);
  const holder = Number(link.origin_id) === OUTSIDE ? holderOf(node.graph) : null;
  return holder && widgetAt(holder, link.origin_slot, name);
}

/**
 * The node at the other end of an input's link.
 * @param {Node} node @param {number} slot
 * @returns {Node | null}
 */
function before(node, slot) {
  let link = node.graph?.getLink(node.inputs?.[slot]?.link);
  if (node.isVirtualNode && !node.subgraph) { // of a subgraph's node getInputLink looks into it
    try {
      const elsewhere = node.resolveVirtualOutput?.(slot); // as Get of a Set
      if (elsewhere) return inside(elsewhere.node, elsewhere.slot);
      link = node.getInputLink(slot);
    } catch {
      return null; // it has lost what it stands for
    }
  }
  if (!link) return null;
  if (Number(link.origin_id) === OUTSIDE) {
    const holder = holderOf(node.graph);
    return holder && before(holder, link.origin_slot);
  }
  return inside(node.graph.getNodeById(link.origin_id), link.origin_slot);
}

/** The node that an output comes from, in however many subgraphs. @param {Node | null} node @param {number} slot */
function inside(node, slot) {
  for (let made = node?.resolveSubgraphOutputLink?.(slot); made?.outputNode; ) {
    node = made.outputNode;
    made = node?.resolveSubgraphOutputLink?.(made.link.origin_slot);
  }
  return node;
}
