// A collection that was just saved, by a node or another page, is offered by Load Collection at once, as after the
// page's key R.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "collectionlora.newFiles",
  setup() {
    api.addEventListener(/** @type {any} */ ("collectionlora.saved"), () => {
      app.reloadNodeDefs().catch(() => {}); // the key does it later
    });
  },
});
