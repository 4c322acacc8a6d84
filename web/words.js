// The page's words in the user's language. English is the key: what has no translation stays English.
// ComfyUI serves locales/*/main.json of all packs together.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

/** @type {Record<string, string>} */
let words = {};

/** Await before building anything that shows words. */
export const ready = (async () => {
  try {
    const response = await api.fetchApi("/i18n");
    const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? navigator.language;
    words = (await response.json())[String(language).split("-")[0]]?.collectionlora ?? {};
  } catch {
    // English then
  }
})();

/**
 * `text` in the user's language, each {name} replaced by its value.
 * @param {string} text @param {Record<string, string | number>} [values]
 */
export function t(text, values = {}) {
  const found = Object.hasOwn(words, text) ? words[text] : text;
  return found.replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole));
}

/** A length of time. @param {number} seconds */
export function inWords(seconds) {
  if (seconds < 90) return t("{n} s", { n: Math.round(seconds) });
  if (seconds < 5400) return t("{n} min", { n: Math.round(seconds / 60) });
  return t("{n} h", { n: (seconds / 3600).toFixed(1) });
}
