// What lies on a node shares the pointer with the canvas behind it.
import { app } from "../../scripts/app.js";

/**
 * The wheel scrolls this element and the pointer works in it, and not the canvas; but what moves the canvas
 * everywhere does so here too: the wheel with Ctrl, the middle button. Vue nodes ask for the mark and for the focus
 * to be inside before they leave it the wheel.
 * @param {HTMLElement} root
 */
export function shareCanvas(root) {
  root.dataset.captureWheel = "true";
  root.tabIndex = Math.max(root.tabIndex, -1); // a click anywhere in it puts the focus inside
  root.addEventListener("wheel", (event) => {
    event.stopPropagation();
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault(); // the browser would zoom the page
    app.canvas.processMouseWheel(event);
  }, { passive: false });
  root.addEventListener("pointerdown", (event) => {
    if (event.button === 1) app.canvas.processMouseDown(event);
    event.stopPropagation();
  });
  root.addEventListener("pointermove", (event) => {
    if (event.buttons & 4) app.canvas.processMouseMove(event);
  });
  root.addEventListener("pointerup", (event) => {
    if (event.button === 1) app.canvas.processMouseUp(event);
  });
}
