// Making elements of the page. Text is only ever text.

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag @param {string} [text] @param {Record<string, string>} [attributes]
 * @returns {HTMLElementTagNameMap[K]}
 */
export function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** Use a style sheet of this folder. @param {string} path */
export function wear(path) {
  document.head.append(element("link", "", { rel: "stylesheet", href: new URL(path, import.meta.url).href }));
}

wear("./common.css");

/** Whether that is a key for the page itself: run, save, undo. @param {Event} event */
export function isPages(event) {
  return event instanceof KeyboardEvent && (event.ctrlKey || event.metaKey || event.altKey);
}
