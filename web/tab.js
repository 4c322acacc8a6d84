// Tabs of the sidebar.
import { app } from "../../scripts/app.js";

/**
 * @typedef {object} Content
 * @property {HTMLElement} root
 * @property {() => void} [remove] called when it is shown no more
 * @property {() => boolean} [mayClose] asked when Escape is pressed; may say why not
 */

/**
 * @param {{id: string, icon: string, title: string, tooltip: string}} tab
 * @param {() => Content} make called each time the tab is opened
 */
export function addTab(tab, make) {
  /** @type {Content | null} */
  let content = null;
  const end = () => {
    content?.remove?.();
    content = null;
  };
  app.extensionManager.registerSidebarTab({
    ...tab,
    type: "custom",
    render: (/** @type {HTMLElement} */ place) => {
      end();
      const shown = make();
      content = shown;
      place.replaceChildren(shown.root);
      shown.root.addEventListener("keydown", (event) => {
        if (event.key !== "Escape" || event.isComposing || shown.mayClose?.() === false) return;
        app.extensionManager.command.execute(`Workspace.ToggleSidebarTab.${tab.id}`);
        /** @type {HTMLElement} */ (document.getElementsByClassName(`${tab.id}-tab-button`)[0])?.focus();
      });
    },
    destroy: end,
  });
}
