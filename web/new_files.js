// A collection that was just saved is offered by Load Collection at once, as after the page's key R.
import { app } from "../../scripts/app.js";

export function offerNewFiles() {
  app.reloadNodeDefs().catch(() => {}); // the key does it later
}
