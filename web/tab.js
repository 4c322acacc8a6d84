// Tabs of the sidebar.
import { app } from "../../scripts/app.js";

/**
 * @typedef {object} Content
 * @property {HTMLElement} root
 * @property {() => void} remove called when it is shown no more
 * @property {() => boolean} [mayClose] whether nothing would be lost; may say what
 */

/**
 * @param {{id: string, icon: string, title: string, tooltip: string}} tab
 * @param {() => Content} make called when the tab is opened
 */
export function addTab(tab, make) {
  /** @type {Content | null} */
  let content = null;
  const end = () => {
    if (content?.mayClose?.() === false) return; // the page closes it all the same: it waits to be shown again
    content?.remove();
    content = null;
  };
  const begin = () => {
    const made = make();
    made.root.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.isComposing || made.mayClose?.() === false) return;
      app.extensionManager.command.execute(`Workspace.ToggleSidebarTab.${tab.id}`);
      /** @type {HTMLElement} */ (document.getElementsByClassName(`${tab.id}-tab-button`)[0])?.focus();
    });
    return made;
  };
  app.extensionManager.registerSidebarTab({
    ...tab,
    type: "custom",
    render: (/** @type {HTMLElement} */ place) => {
      end();
      content ??= begin();
      place.replaceChildren(content.root);
    },
    destroy: end,
  });
}
