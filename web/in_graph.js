// What our nodes show hears of news only while its node is in a graph.
import { app } from "../../scripts/app.js";
import { nodesOf } from "./picker/upstream.js";

/** @typedef {import("./picker/upstream.js").Node} Node */

/** How to end what the nodes in a graph show. @type {Map<Node, () => void>} */
const ends = new Map();

/**
 * Begin when a node comes into a graph, which a copy to the clipboard never does, and end when it leaves.
 * @param {Node} node @param {() => void} begin @param {() => void} end
 */
export function whileInGraph(node, begin, end) {
  const { onAdded, onRemoved } = node;
  node.onAdded = function (/** @type {any[]} */ ...args) {
    onAdded?.apply(this, args);
    ends.set(node, end);
    begin();
  };
  node.onRemoved = function (/** @type {any[]} */ ...args) {
    ends.delete(node);
    end();
    onRemoved?.apply(this, args);
  };
}

app.registerExtension({
  name: "collectionlora.inGraph",
  afterConfigureGraph() {
    // a graph that makes way for another one, as with undo, tells no node inside its subgraphs
    const here = new Set(nodesOf(app.graph.rootGraph));
    for (const [node, end] of ends) {
      if (here.has(node)) continue;
      ends.delete(node);
      end();
    }
  },
});
