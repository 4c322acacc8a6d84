// A collection that was just saved, by a node or another page, is offered by Load Collection at once. Of this node
// alone: the page's key R reads all lists anew, and Primitives lose their values with it.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { changed } from "./picker/catalogue.js";
import { nodesOf, offerChoices, widgetOf } from "./picker/upstream.js";

const LOAD = "CollectionLoraLoad";

async function relist() {
  const { [LOAD]: definition } = await app.getNodeDefs(); // in the page's language
  await app.registerNodeDef(LOAD, definition); // for nodes that are made from now on
  const files = definition.input.required.file[1].options;
  for (const node of nodesOf(app.graph.rootGraph)) {
    if (node.comfyClass !== LOAD) continue;
    offerChoices(node, "file", files);
    changed(widgetOf(node, "file")?.value); // there now, perhaps
  }
}

app.registerExtension({
  name: "collectionlora.newFiles",
  setup() {
    api.addEventListener(/** @type {any} */ ("collectionlora.saved"), () => {
      relist().catch(() => {}); // the key does it later
    });
  },
});
