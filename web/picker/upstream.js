// What feeds a node: through reroutes, into and out of subgraphs.

/** @typedef {any} Node ComfyUI's published types lack much of what its page gives a node. */

const OUTSIDE = -10; // where links come from that enter a subgraph

/** All nodes of a graph and of the subgraphs in it. @param {Node} graph @returns {Generator<Node>} */
export function* nodesOf(graph) {
  for (const node of graph.nodes) {
    yield node;
    if (node.subgraph) yield* nodesOf(node.subgraph);
  }
}

/** Upstream, through reroutes and out of subgraphs, to the node that names a file. @param {Node} node */
export function fileOf(node) {
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
  const link = node.graph?.getLink(node.inputs?.[slot]?.link); // getInputLink looks into subgraphs
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
